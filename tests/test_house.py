"""The house rules, checked on the syntax trees of all files: what may import what, no pickle, nothing too long."""

import ast
import collections
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT

TOP_LEVEL = {"itit", "launch", "tools", "tests", "requirements.txt", "setup.py", "README.md"}
MODELS = ("layers", "encoder", "image_decoder", "text_decoder", "itit", "t5", "vqgan")
CORE = ("program", "ops", "masking", "straight_through", "losses", "decoding", "objectives", "optim", "train_step")
# Folder of the package -> what must be there.
EXPECTED = {
    "": (
        *CORE,
        "config",
        "presets",
        "tasks",
        "text_encoders",
        "checks",
        "flags",
        "storage",
        "train",
        "inference",
        "noise",
        "samples",
        "sheets",
        "pretrained",
        "hosts",
    ),
    "models": MODELS,
    "data": (
        "records",
        "shard_index",
        "order",
        "blocks",
        "source",
        "images",
        "preprocess",
        "text",
        "streams",
        "prefetch",
        "scenes",
    ),
    "scores": ("captions", "scenes"),
    "training": (
        "state",
        "initial",
        "evaluation",
        "metrics",
        "skips",
        "watchdog",
        "interrupt",
        "saver",
        "runs",
        "taken",
    ),
    "checkpoint": ("store", "shards", "pieces", "tensorfile", "weights", "weightsdir"),
    "backends": ("connect", "local", "cuda_graphs", "forms", "processor"),
    "xla": ("api", "mesh", "sharding", "capture", "tracing", "buffers", "forms", "noise"),
}

# Room -> what its modules may import of the package: rooms and modules. A room knows itself.
ROOMS = {
    "data": {"console", "storage", "tasks", "text_encoders", "untrusted"},
    "scores": {"data.scenes"},
    "models": {"program", "ops", "text_encoders"},
    "checkpoint": {"config", "console", "hosts", "models", "storage", "text_encoders", "untrusted"},
    "training": {"checkpoint", "config", "console", "data", "flagfiles", "flags", "models", "objectives", "optim"}
    | {"program", "samples", "scores", "storage", "tasks", "text_encoders", "train_step", "untrusted"},
    "backends": {"checkpoint.pieces", "program", "hosts", "noise", "ops", "training.interrupt"},
    "xla": {"checkpoint.pieces", "program", "hosts", "models", "noise", "ops"},
}
# Module on top -> the same; of those that are not named, only `train`, `pretrained` and `samples` may know more.
TOP = {
    name: set()
    for name in (
        "program",
        "hosts",
        "losses",
        "masking",
        "noise",
        "ops",
        "presets",
        "storage",
        "tasks",
        "text_encoders",
        "console",
        "untrusted",
        "usage",
    )
} | {
    "checks": {"tasks"},
    "config": {"checks", "presets", "tasks", "text_encoders", "untrusted"},
    "flagfiles": {"storage"},
    "flags": {"checks", "config", "console", "flagfiles", "untrusted", "usage"},
    "locks": {"storage"},
    "straight_through": {"ops"},
    "optim": {"ops"},
    "decoding": {"program", "masking", "noise", "ops", "text_encoders"},
    "inference": {"decoding", "program", "masking", "models"},
    "objectives": {"masking", "losses", "straight_through", "decoding", "noise", "inference", "models", "ops", "tasks"},
    "train_step": {"program", "inference", "objectives", "optim", "models", "tasks"},
    "sheets": {"data.images", "storage"},
    "samples": {"decoding", "program", "inference", "models", "sheets"},
    "pretrained": {
        "backends.local",
        "checkpoint",
        "config",
        "data",
        "models",
        "objectives",
        "samples",
        "storage",
        "text_encoders",
        "train_step",
        "training",
        "untrusted",
    },
}
# Narrower than its room.
NARROW = {
    "data.order": set(),
    "xla.api": set(),
    "xla.sharding": set(),
    "checkpoint.pieces": set(),
    "checkpoint.tensorfile": {"storage", "untrusted"},
    "backends.cuda_graphs": {"program", "noise"},
    "backends.forms": {"ops"},
    "backends.processor": set(),
    "xla.forms": {"models", "ops", "xla.api"},
    "xla.noise": {"noise"},
    **{f"scores.{name}": {"scores.ngrams"} for name in ("bleu", "cider")},
    **{f"scores.{name}": set() for name in ("ngrams", "ptb", "rouge")},
}
# These are given the networks: from `models` they take only the types and pure functions on what goes in and out.
GIVEN = ("inference", "objectives", "train_step")
NO_NETWORKS = {"Text", "Encoded", "encode_text", "cast_once", "weights_cast"}
# Library -> the only modules that import it.
ONLY = {
    "torch_xla": {"itit.xla.api"},
    "tensorflow": {"itit.data.preprocess"},
    "tensorflow_text": {"itit.data.preprocess"},
    "fsspec": {"itit.storage"},
    "gcsfs": {"itit.storage"},
    "jax": {"tools.tpu.compile_worker"},
    "jaxlib": {"tools.tpu.compile_worker"},
    "libtpu": set(),
}
KNOW_XLA = {"itit.backends.connect", "tools.preflight", "tools.tpu.step_programs"}
# Imports inside a function that save a library where it is not needed: (importing module, imported module).
LAZY = {
    ("tools.data.tokenizing", "itit.data.preprocess"),
    ("tools.spread.distribution", "tools.spread.on_ray"),
    ("itit.pretrained", "itit.checkpoint.hub"),
    ("itit.train", "itit.training.wandb_run"),
    ("tools.push_to_hub", "itit.checkpoint.hub"),
    ("itit.backends.connect", "itit.xla.mesh"),
    ("itit.storage", "aiohttp"),
    ("tools.tpu.step_programs", "itit.xla.tracing"),
    # `itit.ITIT`, `itit.models.load` and `itit.models.t5.load` are names for a user; importing `itit` or the networks
    # loads no more than before.
    ("itit", "itit.pretrained"),
    ("itit.models", "itit.checkpoint.weights"),
    ("itit.models.t5", "itit.checkpoint.weights"),
}
# Rooms and modules that speak of devices. Elsewhere an operation has a form for each (see itit/ops.py).
OF_DEVICES = {"backends", "xla", "ops", "config"}
DEVICES = re.compile(r"xla|cuda|device\.type", re.IGNORECASE)
# Processes that a library of a room starts; no commands.
WORKERS = {"tools.tpu.compile_worker"}
# Folder -> modules that it may have, where those are more than 16.
MODULES = {"itit": 29, "tools": 39, "tests/core": 30, "tests/helpers": 21, "tests/tools/data": 20, "tests/training": 17}
# Pickles are made, and read as torch would, by the tests of `tools.convert.pickled` alone, which reads them by itself.
GUARDED = {"tests.helpers.foreign_weights": ("torch.load", "torch.save")}


def tracked_files():
    """Files of the repository that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [pathlib.Path(name) for name in listed if (ROOT / name).is_file()]


def module_name(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


TREES = {
    module_name(path): ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))
    for path in tracked_files()
    if path.suffix == ".py"
}
PACKAGE = sorted(name for name in TREES if name.split(".")[0] == "itit")
CODE = sorted(name for name in TREES if name.split(".")[0] in ("itit", "tools"))


def imports(tree):
    """Full names of all that a tree imports: `from itit import masking` gives itit.masking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(full):
    """The module of this repository that a full name lies in: itit.models.layers.Block -> itit.models.layers."""
    while full and full not in TREES:
        full = full.rpartition(".")[0]
    return full


def siblings(name):
    """Modules of the package that a module imports, without the leading itit."""
    found = {module_of(full) for full in imports(TREES[name]) if full.split(".")[0] == "itit"}
    return {full.removeprefix("itit.") for full in found - {"itit"}}


def is_main(tree):
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_house_is_complete():
    expected = {".".join(filter(None, ("itit", room, name))) for room, names in EXPECTED.items() for name in names}
    assert expected <= set(TREES), f"absent: {sorted(expected - set(TREES))}"
    top = {path.parts[0] for path in tracked_files() if not path.parts[0].startswith(".")}
    assert top == TOP_LEVEL


@pytest.mark.parametrize("name", [name.removeprefix("itit.") for name in PACKAGE if name != "itit"])
def test_rule_1_what_each_file_may_import(name):
    room = name.split(".")[0]
    if room not in ROOMS and name not in TOP:
        assert name == "train", f"{name}: say in TOP what it may import, or put it into a room"
        return
    lazy = {other.removeprefix("itit.") for importing, other in LAZY if importing == f"itit.{name}"}
    allowed = NARROW.get(name, TOP[name] if name in TOP else ROOMS[room] | {room})
    assert {other for other in siblings(f"itit.{name}") - lazy if not {other, other.split(".")[0]} & allowed} == set()


def test_rule_1_pytorch_xla_is_known_to_its_room_alone():
    """What chooses a backend imports it when it is asked for. Of the tools, those of pre-flight know it."""
    for name in CODE:
        found = {module_of(full) for full in imports(TREES[name]) if full.startswith("itit.xla")}
        assert not found or name.startswith("itit.xla") or name in KNOW_XLA, f"{name} imports {found}"


@pytest.mark.parametrize("name", GIVEN)
def test_rule_2_these_are_given_the_networks(name):
    taken = {full.rpartition(".")[2] for full in imports(TREES[f"itit.{name}"]) if full.startswith("itit.models")}
    assert taken <= NO_NETWORKS


def test_rule_3_data_never_sees_torch():
    for name in (name for name in PACKAGE if name.startswith("itit.data")):
        assert not {full.split(".")[0] for full in imports(TREES[name])} & {"torch", "torchvision"}, name
        assert not {other.split(".")[0] for other in siblings(name)} & {"models", *CORE}, name
    assert "storage" in siblings("itit.checkpoint.store")


def test_rule_4_one_importer_each():
    for name in CODE:
        for full in imports(TREES[name]):
            assert name in ONLY.get(full.split(".")[0], {name}), f"{name} imports {full}"
            if full.startswith("absl.flags"):
                assert name == "itit.flags" or is_main(TREES[name]), f"{name} imports absl.flags and is no main"


def test_rule_4_torch_xla_is_asked_by_the_functions_of_one_file():
    """And each of them is wanted. Tests do not import it either."""
    importers = {name for name, tree in TREES.items() for full in imports(tree) if full.split(".")[0] == "torch_xla"}
    assert importers == {"itit.xla.api"}
    functions = {node.name for node in TREES["itit.xla.api"].body if isinstance(node, ast.FunctionDef)}
    attributes = [node for name in CODE for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)]
    assert {node.attr for node in attributes if ast.unparse(node.value) == "api"} == functions


def test_rule_5_nothing_imports_a_main_and_the_package_no_tool():
    mains = {name for name in CODE if is_main(TREES[name])}
    for name in CODE:
        found = {module_of(full) for full in imports(TREES[name])}
        assert not found & mains, f"{name} imports a main: {found & mains}"
        assert name.startswith("tools") or not any(full.split(".")[0] in ("tools", "tests") for full in found), name


def test_rule_5_commands_alone_on_top_of_the_tools():
    """Their libraries lie in rooms, which import no command: no main, and nothing else on top."""
    for name in (name for name in CODE if name.startswith("tools.")):
        on_top, room = name.count(".") == 1, f"{name}." in {f"{other.rpartition('.')[0]}." for other in TREES}
        assert room or name in WORKERS or on_top == is_main(TREES[name]), (
            f"{name}: a command on top, or a library below"
        )


def test_rule_5_no_folder_is_a_heap():
    folders = collections.Counter(path.parent for path in tracked_files() if path.suffix == ".py")
    for folder, count in folders.items():
        assert count <= MODULES.get(str(folder), 16), f"{folder}: {count} modules"


def test_rule_5_no_import_inside_a_function():
    for name in CODE:
        inner = [n for n in ast.walk(TREES[name]) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
        lazy = {(name, module_of(full) or full) for function in inner for full in imports(function)}
        assert lazy <= LAZY, f"imports inside functions: {lazy - LAZY}"


def test_rule_6_the_core_works_with_torch_alone():
    code = """
import sys
import torch

class Blocked:
    names = {"torch_xla", "tensorflow", "tensorflow_text", "fsspec", "gcsfs", "sentencepiece", "google_crc32c", "PIL",
             "absl", "tensorboard", "safetensors", "scipy", "matplotlib"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
"""
    modules = [f"itit.models.{n}" for n in MODELS] + [f"itit.{n}" for n in CORE]
    code += "import itit.models\n" + "".join(f"import {name}\n" for name in modules)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_rule_7_the_core_speaks_of_no_device():
    """Neither in code nor in words: how a device computes an operation is no concern of a reader of the paper."""
    seen = set()
    for path in (path for path in tracked_files() if path.suffix == ".py" and path.parts[0] == "itit"):
        room = module_name(path).removeprefix("itit.").split(".")[0]
        found = [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if DEVICES.search(line)]
        assert room in OF_DEVICES or not found, f"{path}: {found}"
        seen |= {room} if found else set()
    assert seen == OF_DEVICES


def test_no_pickle():
    for name, tree in TREES.items():
        found = {full.split(".")[0] for full in imports(tree)}
        assert not found & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, name
        for call in calls(tree):
            text = ast.unparse(call.func)
            if text in ("torch.load", "torch.save", "torch.jit.load"):
                assert text in GUARDED.get(name, ()), f"{name}:{call.lineno}: {text}"
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert text != "torch.load" or given.get("weights_only") == "True", f"{name}:{call.lineno}"
            assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}, f"{name}:{call.lineno}"


def test_nothing_is_too_long():
    for path in tracked_files():
        if path.suffix in (".py", ".sh"):
            assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 400, path


def test_shell_scripts_are_clean():
    scripts = [str(path) for path in tracked_files() if path.suffix == ".sh"]
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    found = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_module_is_tested():
    tests = {name for name in TREES if name.startswith("tests.") and name.rpartition(".")[2].startswith("test_")}
    names = {name.rpartition(".")[2] for name in tests}
    reached = {module_of(full) for name in tests for full in imports(TREES[name])}
    packages = {name.rpartition(".")[0] for name in CODE}
    for name in set(CODE) - packages:
        assert name in reached or f"test_{name.split('.')[-1]}" in names, f"no test of {name}"


def test_every_module_says_what_it_is():
    for name, tree in TREES.items():
        assert ast.get_docstring(tree), f"{name}: no docstring"
