"""`python -m tests.traced FOLDER`: two small programs, traced by torch_xla as `step_programs` wants them, into FOLDER.

A process of its own, on 8 virtual devices. `read` gives the Programs back.

Shapes: B batch, D width, H hidden width.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

from itit.sharding import Program
from tests.common import ROOT

ROWS = (("data", "fsdp"), None)
B, D, H = 64, 128, 256
SCOPE = "itit/"


def make(folder):
    """The programs, traced in a process of its own."""
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "8", "XLA_HLO_DEBUG": "1"}
    subprocess.run([sys.executable, "-m", "tests.traced", str(folder)], cwd=ROOT, env=environment, check=True)
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
    import numpy as np
    import torch
    import torch_xla
    import torch_xla.distributed.spmd as xs
    import torch_xla.runtime as xr

    c = torch_xla._XLAC
    xr.use_spmd()
    mesh, device = xs.Mesh(np.arange(8), (2, 4), ("data", "fsdp")), torch_xla.device()
    split = ("fsdp", None)

    def mark(tensor, spec):
        c._xla_mark_sharding(tensor, mesh.get_op_sharding(spec))
        return tensor

    @contextlib.contextmanager
    def scope(name):
        pushed = c.profiler.scope_pusher(SCOPE + name)
        yield
        del pushed

    class Leave(torch.autograd.Function):
        """Where a part's forward pass ends, its backward pass begins."""

        open = []

        @staticmethod
        def forward(ctx, x, name):
            ctx.name = name
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            Leave.open.clear()
            Leave.open.append(c.profiler.scope_pusher(SCOPE + ctx.name))
            return grad, None

    def save(name, calls, known, roots, outputs, donated):
        """`known`: (tensor, spec) of all that the program may read."""
        handles = {h: (tuple(t.shape), spec) for (t, spec), h in
                   zip(known, c._get_tensors_handle([t for t, _ in known]), strict=True)}  # fmt: skip
        _, values = c._get_tensors_xla_device_data_node(roots)
        inputs = [handles.get(h, (tuple(v.shape), ())) for v, h in
                  zip(values, c._get_tensors_handle(values), strict=True)]  # fmt: skip
        specs = {c._get_xla_sharding_spec(t): spec for t, spec in known}
        fields = {"name": name, "calls": calls, "inputs": inputs, "outputs": outputs, "donated": donated}
        text = json.dumps(fields | {"specs": list(specs.items())})
        (pathlib.Path(folder) / f"{name}.json").write_text(text)
        (pathlib.Path(folder) / f"{name}.hlo").write_bytes(c._get_xla_tensors_hlo_proto(roots))

    torch.autograd.set_multithreading_enabled(False)  # scopes are of the thread
    weights = [mark(torch.randn(H, D).to(device), split), mark(torch.randn(D, H).to(device), split)]
    rows = mark(torch.randn(B, D).to(device), ROWS)
    torch_xla.sync()
    for weight in weights:
        weight.requires_grad_()
    with scope("t2i"):
        hidden = mark(torch.nn.functional.gelu(rows @ weights[0].T), ROWS)
        loss = Leave.apply((hidden @ weights[1].T).square().mean(), "t2i")
    loss.backward()
    Leave.open.clear()
    with scope("optimizer, EMA"), torch.no_grad():
        updated = [mark(w - 0.1 * w.grad, split) for w in weights]
    known = [(weights[0], split), (weights[1], split), (rows, ROWS)]
    outputs = [((H, D), split), ((D, H), split), ((), ())]
    save("update", 1, known, [*updated, loss.detach()], outputs, [])
    with torch.no_grad():
        save("decode_step", 24, known, [mark((rows @ weights[0].T).sin(), ROWS)], [((B, H), ROWS)], [])


if __name__ == "__main__":
    main(sys.argv[1])
