"""`python -m tools.tpu.compile_worker FOLDER`: compiles one program for TPU chips that are not there.

A process of its own, started by `tpu_compiler.py`: the compiler aborts where it fails badly, and takes its process
along. The only importer of jax, by whose topologies the compiler in libtpu is reached; private names, versions pinned
in setup.py. Never ask the result for `cost_analysis()`: it aborts.

FOLDER holds `program.hlo` (HloModuleProto, global shapes) and `request.json`; `module.txt` (the optimised module) and
`result.json` come out: sizes in bytes a chip, or {"error": text}.
"""

import json
import pathlib
import re
import resource
import sys

import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jax._src.lib.mlir import ir
from jax.experimental import topologies

from tools.tpu.sharding_text import canonical

SIZES = ("argument", "output", "alias", "temp", "generated_code")


def with_shardings(text, request):
    """The module for the target mesh: shardings inside rewritten, those of parameters and results set."""
    known = {canonical(old): new for old, new in request["rewrite"]}

    def rewrite(match):
        sharding = canonical(match[1])
        if sharding not in known:
            raise ValueError(f"the program has a sharding that is not among its specs: {match[1]}")
        return f'mhlo.sharding = "{known[sharding]}"'

    with mlir.make_ir_context():
        # Parameters may be marked, too; theirs are replaced below.
        head, main, rest = text.partition("func.func @main")
        signature, brace, body = rest.partition("{\n")
        signature = re.sub(r' \{mhlo\.sharding = "[^"]*"\}', "", signature)
        text = head + main + signature + brace + re.sub(r'mhlo\.sharding = "([^"]*)"', rewrite, body)
        module = ir.Module.parse(text)
        function = next(op for op in module.body.operations if op.attributes["sym_name"].value == "main")
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([
            _attributes(sharding, request["donated"].get(str(i))) for i, sharding in enumerate(request["inputs"])
        ])  # fmt: skip
        if request["outputs"]:
            function.attributes["res_attrs"] = ir.ArrayAttr.get([_attributes(x) for x in request["outputs"]])
        return module.operation.get_asm(enable_debug_info=True).encode()  # with the names of the parts


def _attributes(sharding, output=None):
    found = {"mhlo.sharding": ir.StringAttr.get(sharding)} if sharding else {}
    if output is not None:
        found["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), output)
    return ir.DictAttr.get(found)


def compile_program(proto, request):
    """The loaded executable."""
    topology = topologies.get_topology_desc(request["topology"], platform="tpu", chip_config_name=request["config"])
    devices = topology.devices
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = 1, len(devices)
    build = options.executable_build_options
    build.num_replicas, build.num_partitions, build.use_spmd_partitioning = 1, len(devices), True
    build.use_shardy_partitioner = False
    # Where nothing is said of the results, updated weights would come out as copies on every chip otherwise; where it
    # is said, the compiler would choose for itself what is declared to lie whole on every chip.
    build.allow_spmd_sharding_propagation_to_output = [not request["outputs"]]
    build.device_assignment = xla_client.DeviceAssignment.create(np.arange(len(devices)).reshape(1, -1))
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(proto))
    module = with_shardings(text if isinstance(text, str) else text.decode(), request)
    return devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)


def main(folder):
    folder = pathlib.Path(folder)
    request = json.loads((folder / "request.json").read_text())
    try:
        executable = compile_program((folder / "program.hlo").read_bytes(), request)
        memory = executable.get_compiled_memory_stats()
        result = {name: getattr(memory, f"{name}_size_in_bytes") for name in SIZES}
        (folder / "module.txt").write_text(executable.hlo_modules()[0].to_string())
    except (RuntimeError, ValueError) as error:  # jax's own errors are RuntimeErrors
        result = {"error": str(error)}
    result["host_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
