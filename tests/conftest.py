"""Read before every test: what must be set or imported first; and what several files make once."""

import contextlib
import os
import signal

import pytest

import itit  # noqa: F401 (its `processor`, before torch)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # run.sh runs two files at a time
# Read once, when gcsfs is imported: with it, gcsfs asks Google what kind a bucket is.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
os.environ.setdefault("PJRT_DEVICE", "CPU")  # TPU chips are left alone
with contextlib.suppress(ImportError):  # models of transformers import torch_xla: after TensorFlow the process aborts
    import itit.xla.api  # noqa: F401
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the suite itself runs under nohup, too
pytest.register_assert_rewrite("tests.helpers.cloud")

from tests.helpers.cloud import cloud, ready, repository  # noqa: E402, F401

LONG = ("test_xla.py", "test_faults.py")  # begun first: the last file is one process's alone


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def kept_signals():
    """Gives the signals that a training loop takes back to whoever had them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def traced_programs(tmp_path_factory):
    """The programs of tests/helpers/traced.py, traced by torch_xla."""
    from tests.helpers import traced

    return traced.make(tmp_path_factory.mktemp("traced"))


@pytest.fixture(params=["plain", "xla"])
def way(request, monkeypatch):
    """A test is run with operations in plain torch, and with the forms of XLA (see itit/ops.py)."""
    from tests.helpers.small import use_forms

    if request.param == "xla":
        use_forms(monkeypatch)
    return request.param
