"""Folders of weights: what was saved, its hashes, and files that are not what they should be."""

import os
import random
import shutil

import pytest

from itit import storage
from itit.checkpoint import weightsdir
from itit.config import T5Config, VqganConfig
from tests.checkpoint.test_checkpoint import random_tensors, same


def test_weights_come_back_with_their_settings(tmp_path):
    config, tensors = VqganConfig(image_size=random.randrange(99), channel_multipliers=(1, 2)), random_tensors(5)
    folder = str(tmp_path / "a" / "b")
    weightsdir.save(folder, tensors, config)
    back, loaded = weightsdir.load(folder, VqganConfig)
    assert back == config and same(loaded, tensors)


def test_the_hash_of_weights_is_checked(tmp_path):
    folder = str(tmp_path / "vqgan")
    weightsdir.save(folder, random_tensors(3), VqganConfig())
    hashes = weightsdir.hashes_of(folder)
    assert hashes == {n: storage.sha256(str(tmp_path / "vqgan" / n)) for n in ("config.json", "model.safetensors")}
    weightsdir.load(folder, VqganConfig, hashes["model.safetensors"])
    with pytest.raises(ValueError, match="model.safetensors: damaged or replaced: its SHA-256 is .*, recorded is 00ff"):
        weightsdir.load(folder, VqganConfig, "00ff")
    (tmp_path / "vqgan" / "hashes.json").unlink()
    with pytest.raises(ValueError, match="recorded is 00ff"):
        weightsdir.load(folder, VqganConfig, "00ff")
    assert same(weightsdir.load(folder, VqganConfig)[1], random_tensors(3))
    for text in ("[]", "{", '{"files": {"model.safetensors": {"bytes": 3}}}'):
        (tmp_path / "vqgan" / "hashes.json").write_text(text)
        with pytest.raises(ValueError, match="vqgan/hashes.json: "):
            weightsdir.load(folder, VqganConfig)


def test_bad_weights_are_named(tmp_path):
    folder = tmp_path / "vqgan"
    with pytest.raises(ValueError, match="vqgan: no config.json"):
        weightsdir.load(str(folder), VqganConfig)
    weightsdir.save(str(folder), random_tensors(1), VqganConfig())
    with pytest.raises(ValueError, match="vqgan/config.json: unknown field"):
        weightsdir.load(str(folder), T5Config)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(ValueError, match="vqgan/model.safetensors: "):
        weightsdir.load(str(folder), VqganConfig)
    (whole / "hashes.json").unlink()  # as in folders from before there were hashes
    (whole / "config.json").write_bytes(b'{"channels": \xff}')
    with pytest.raises(ValueError, match="whole/config.json: not JSON"):
        weightsdir.load(str(whole), VqganConfig)
