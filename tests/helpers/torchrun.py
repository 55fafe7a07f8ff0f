"""`torchrun -m itit.train`, as a user starts it."""

import os
import subprocess
import sys

from tests.helpers.common import ROOT


def start(values, count, *options, **environment):
    """The process of torchrun. `values`: flag -> value, of itit.train; `options`: of torchrun."""
    flags = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *options]
    return subprocess.Popen(
        [*command, "-m", "itit.train", *flags], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def torchrun(values, count, *options, **environment):
    """The same, ended: a CompletedProcess."""
    process = start(values, count, *options, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
