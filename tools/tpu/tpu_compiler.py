"""Compiles the programs of a step for TPU chips that are not there, each in a process of its own.

See `compile_worker.py`, which runs there: where the compiler aborts, or a chip's memory runs out, the program does not
compile, and here we say why.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tools.tpu import sharding_text
from tools.tpu.hlo import Module

NEEDED = {"jax": "0.7.1", "jaxlib": "0.7.1", "libtpu": "0.0.21"}  # as the extra "preflight" of setup.py
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Compiled(NamedTuple):
    """A program for the target chips.

    error: why it does not compile, else "". memory: bytes a chip of argument, output, alias, temp, generated_code.
    module: hlo.Module. seconds, host_gib: what the compiler took here.
    """

    name: str
    calls: int
    error: str
    memory: dict
    module: Module | None
    seconds: float
    host_gib: float


def check_installed():
    """Raises ValueError where the extra is missing or of other versions, whose private names differ."""
    for name, version in NEEDED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"{name} is not installed: pip install -e .[preflight]") from None
        if found != version:
            raise ValueError(f"{name} {found}: must be {version}: pip install -e .[preflight]")


def compile_program(program, topology, mesh, keep=None):
    """Compiled for `topology`; `mesh`: axis -> size. `keep`: a folder for the text of the optimised module.

    Raises ValueError where a shape does not divide over the mesh, and where this machine has too little memory.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "program.hlo").write_bytes(program.hlo)
        (folder / "request.json").write_text(json.dumps(request(program, topology, mesh)))
        result = _run(folder, topology)
        module = None
        if "error" not in result:
            text = (folder / "module.txt").read_text()
            module = Module(text)
            if keep:
                (pathlib.Path(keep) / f"{program.name}.txt").write_text(text)
    error = reason(result.pop("error", ""))
    host_gib = result.pop("host_kib", 0) / 2**20
    return Compiled(program.name, program.calls, error, result, module, time.perf_counter() - start, host_gib)


def request(program, topology, mesh):
    """What the worker is told."""
    for what, entries in (("input", program.inputs), ("output", program.outputs or ())):
        for i, (shape, spec) in enumerate(entries):
            for size, parts in zip(shape, sharding_text.parts(spec, mesh), strict=False):
                if size % parts:
                    raise ValueError(f"{program.name}, {what} {i} of shape {list(shape)}: {size} cannot be split over "
                                     f"{parts} chips as {spec}")  # fmt: skip
    return {
        "topology": str(topology),
        "config": topology.chip.config,
        "inputs": [sharding_text.to_text(spec, mesh) for _, spec in program.inputs],
        "outputs": [sharding_text.to_text(spec, mesh) for _, spec in program.outputs or ()],
        "donated": dict(program.donated),
        "rewrite": [(old, sharding_text.to_text(spec, mesh)) for old, spec in program.specs.items()],
    }


def _run(folder, topology):
    """The worker's result, or {"error": ...} where it died."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": topology.chip.accelerator, "PYTHONPATH": str(ROOT), "TPU_STDERR_LOG_LEVEL": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "tools.tpu.compile_worker", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    path = folder / "result.json"
    if ended.returncode == 0 and path.exists():
        return json.loads(path.read_text())
    if ended.returncode == -signal.SIGKILL:
        raise ValueError("the compiler was killed: it needs more memory than this machine has")
    lines = [line for line in ended.stderr.splitlines() if re.search(r"\S", line)]
    telling = [line for line in lines if re.search(r"Error|error|Check failed|F\d{4} ", line)] or lines or ["no word"]
    died = f"signal {-ended.returncode}" if ended.returncode < 0 else f"code {ended.returncode}"
    return {"error": f"the compiler died ({died}): {telling[-1].strip()}"}


def reason(error):
    """An error of the compiler in one short line; where memory ran out, how much was used of how much."""
    if match := re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) (\w+)", error):
        return f"out of memory: {match[1]} used of {match[2]} {match[3]} a chip"
    return " ".join(error.split())[:300]
