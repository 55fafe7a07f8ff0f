"""Exports on the Hugging Face Hub, or a server like it (HF_ENDPOINT): given to it, and fetched, never silently."""

import logging
import os
import sys

from itit import storage
from itit.checkpoint import weights, weightsdir
from itit.console import say
from itit.untrusted import shown

try:
    import huggingface_hub
    from huggingface_hub import constants
except ModuleNotFoundError as error:
    raise ValueError(f"the Hugging Face Hub needs huggingface_hub (pip install -e .[hub]): {error}") from None

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request

# What an export may have; nothing else of a repository is fetched.
NETWORK = ("config.json", "hashes.json", "model.safetensors")
FILES = ("README.md", "hashes.json", "model.safetensors", "training.cfg", "vocabulary.model",
         *(f"{part}/{name}" for part in ("vqgan", "t5") for name in NETWORK))  # fmt: skip


def fetch(name, revision=None):
    """The folder of a repository OWNER/NAME in the cache of huggingface_hub, fetched where it is not there.

    Args:
      revision: branch, tag or commit; by default the newest.

    Raises ValueError, one line, where there is none or the server does not answer.
    """
    where = f"{name}@{revision}" if revision else name
    say(f"{where}: no such folder here: fetching it from {_server()}", sys.stderr)
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(FILES), endpoint=os.environ.get("HF_ENDPOINT")
        )
    except Exception as error:  # of huggingface_hub, httpx and the system
        raise ValueError(f"{where}: neither a folder nor to be had from {_server()}: {_line(error)}") from None
    say(f"{where}: {folder}", sys.stderr)
    return folder


def push(folder, name, private=False):
    """Gives an export to the Hub, its model card included. Returns the address.

    Raises ValueError, one line, where a file is not the one that was exported, and where the server refuses.
    """
    if not weights.ON_HUB.fullmatch(name):
        raise ValueError(f"{name!r}: must be OWNER/NAME")
    if storage.is_remote(folder):
        raise ValueError(f"{folder}: must be a folder on this machine, to be given to {_server()}")
    hashes = weightsdir.hashes_of(folder, ("README.md", "model.safetensors"))
    for file, digest in hashes.items():
        weightsdir.check_hash(storage.join(folder, file), digest, storage.sha256(storage.join(folder, file)))
    server = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        address = server.create_repo(name, private=private, exist_ok=True)
        server.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="Export of ITIT"
        )
    except Exception as error:
        raise ValueError(f"{name}: not given to {_server()}: {_line(error)}") from None
    return str(address)


def _server():
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def _line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {shown(text)}"
