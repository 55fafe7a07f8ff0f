"""What several tests share: where the real data lies, and a port for a server."""

import contextlib
import os
import pathlib
import socket

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def shared_data():
    """The folder of real data: ITIT_SHARED_DATA, or `../shared/data` beside the repository. Skips where neither is."""
    folder = pathlib.Path(os.environ.get("ITIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else pytest.skip(f"no shared data at {folder}; set ITIT_SHARED_DATA to its folder")


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def squeezenet():
    """SqueezeNet's weights of the real data, a path. Skips where they are not."""
    return next((shared_data() / "squeezenet").glob("*.npz"), None) or pytest.skip("no SqueezeNet weights")
