"""`python -m tests.helpers.traced FOLDER`: three small programs, traced by torch_xla, into FOLDER.

A process of its own, on 8 virtual devices. `read` gives the Programs back.

Shapes: B batch, D width, H hidden width.
"""

import json
import os
import pathlib
import subprocess
import sys

from itit.xla.sharding import Program
from tests.helpers.common import ROOT

B, D, H = 64, 128, 256


def make(folder):
    """The programs, traced in a process of its own."""
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "8", "XLA_HLO_DEBUG": "1"}
    subprocess.run([sys.executable, "-m", "tests.helpers.traced", str(folder)], cwd=ROOT, env=environment, check=True)
    return read(folder)


def read(folder):
    found = []
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        fields = json.loads(path.read_text())
        fields = {name: _tuples(value) for name, value in fields.items()}
        specs = dict(fields.pop("specs"))
        found.append(Program(**fields, specs=specs, hlo=path.with_suffix(".hlo").read_bytes()))
    return found


def _tuples(value):
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def main(folder):
    import torch

    from itit.ops import linear
    from itit.xla.sharding import TRAINED
    from itit.xla.tracing import TracedMesh, end_backward, leave, scope

    def update(weights, rows):
        with scope("t2i"):
            hidden = mesh.place(torch.nn.functional.gelu(rows @ weights[0].T))
            loss = leave((hidden @ weights[1].T).square().mean(), "t2i")
        loss.backward()
        end_backward()
        with scope("optimizer, EMA"), torch.no_grad():
            for weight in weights:
                weight.copy_(weight - 0.1 * weight.grad)
        return loss.detach()

    @torch.no_grad()
    def decode_step(weights, rows):
        return (rows @ weights[0].T).sin()

    def three_passes(weight, moment, rows):
        cast = weight.bfloat16()
        loss = sum(linear(x.bfloat16(), cast).float().sin().sum() for x in (rows, rows.cos(), rows.exp()))
        loss.backward()
        with torch.no_grad():
            moment.copy_(weight.grad)

    mesh = TracedMesh(2, 4, "highest")
    weights = [mesh.placeholder(shape, torch.float32, ("fsdp", None)).requires_grad_() for shape in ((H, D), (D, H))]
    rows = mesh.rows((B, D), torch.float32)
    with torch.autograd.set_multithreading_enabled(False):  # scopes are of the thread
        mesh.run(update, weights, rows, updates=weights)
        for _ in range(24):
            mesh.run(decode_step, weights, rows)
    moment = mesh.placeholder((H, D), torch.float32, (TRAINED, None))
    mesh.run(three_passes, mesh.placeholder((H, D), torch.float32, ("fsdp", None)).requires_grad_(), moment, rows,
             updates=[moment])  # fmt: skip
    for program in mesh.run.programs:
        path = pathlib.Path(folder) / f"{program.name}.json"
        path.with_suffix(".hlo").write_bytes(program.hlo)
        fields = program._replace(hlo=None, specs=list(program.specs.items()))._asdict()
        path.write_text(json.dumps({name: value for name, value in fields.items() if name != "hlo"}))


if __name__ == "__main__":
    main(sys.argv[1])
