"""Networks from files: equal to those saved, and refused in one line where the files do not fit."""

import json

import pytest
import torch

from itit import models
from itit.checkpoint import tensorfile, weights, weightsdir
from itit.config import T5Config, VqganConfig, to_json
from itit.models import VQGAN, t5
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

SIZES = T5Config(size="nano", dim=24, head_dim=8, ff_dim=32, num_layers=2, num_heads=2, vocab_size=48)


def save_t5(folder, dtype=torch.float32, config=SIZES):
    encoder = t5.T5Encoder(SIZES)
    encoder.init_weights(int(torch.randint(2**31, ())))
    weightsdir.save(str(folder), encoder.to(dtype).state_dict(), config)
    return encoder


def save_itit(path, config=None, **values):
    """A file as tools.export writes it. Returns the network."""
    config = config or small.small(**values)
    model = small.stir(models.ITITModel(config.model)).eval()
    record = {"config": {name: json.loads(to_json(getattr(config, name))) for name in weights.SECTIONS}}
    state = model.state_dict()
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}
    return model, tensorfile.write(str(path), layout, state.values(), {weights.RECORD: json.dumps(record)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_encoder_comes_back_frozen_in_its_own_dtype(tmp_path, dtype):
    saved = save_t5(tmp_path, dtype)
    found = t5.load(str(tmp_path))
    ids = torch.randint(48, (3, 150))  # further apart than any bucket
    assert torch.equal(found(ids), saved(ids)) and found.token_embed.weight.dtype == dtype
    assert not any(p.requires_grad for p in found.parameters())


def test_an_image_tokenizer_comes_back_frozen(tmp_path):
    config = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, codebook_size=20)
    saved = VQGAN(config).eval()
    weightsdir.save(str(tmp_path), saved.state_dict(), config)
    found, pixels = weights.load_vqgan(str(tmp_path)), torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(found.tokenize(pixels), saved.tokenize(pixels)) and not found.training
    assert not any(p.requires_grad for p in found.parameters())
    hashes = weightsdir.hashes_of(str(tmp_path))
    weights.load_vqgan(str(tmp_path), hashes["model.safetensors"])
    with pytest.raises(ValueError, match="recorded is abc"):
        weights.load_vqgan(str(tmp_path), "abc")


@pytest.mark.parametrize("config,tensors,part", [
    (T5Config(**vars(SIZES) | {"num_layers": 1}), None, "model.safetensors does not fit config.json: Unexpected key"),
    (T5Config(**vars(SIZES) | {"ff_dim": 40}), None, "model.safetensors does not fit config.json: size mismatch for"),
    (T5Config(**vars(SIZES) | {"dim": None}), None, "config.json: dim is None"),
    (SIZES, {"t": torch.ones(2, dtype=torch.int64)}, "tensors of one floating type"),
    (SIZES, {"t": torch.ones(2), "u": torch.ones(2, dtype=torch.bfloat16)}, "tensors of one floating type"),
    (SIZES, {"t": torch.ones(2)}, "does not fit config.json: Missing key"),
])  # fmt: skip
def test_text_encoders_that_do_not_fit_are_refused(tmp_path, config, tensors, part):
    save_t5(tmp_path, config=config)
    if tensors:
        weightsdir.save(str(tmp_path), tensors, config)
    with pytest.raises(ValueError, match=f"^{tmp_path}") as error:
        t5.load(str(tmp_path))
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{}, {"class_token": True, "empty_text": "learned", "text_decoder_norm": "post"}])
def test_itit_comes_back_from_its_folder_and_from_the_file_alone(tmp_path, values):
    saved, hashes = save_itit(tmp_path / "model.safetensors", **values)
    weightsdir.write_hashes(str(tmp_path), {"model.safetensors": hashes})
    (tmp_path / "moved.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "moved.safetensors"):
        found = models.load(str(path))
        assert not found.training and found.config == saved.config
        assert found.state_dict().keys() == saved.state_dict().keys()
        assert all(torch.equal(found.state_dict()[name], t) for name, t in saved.state_dict().items())


def test_what_is_no_export_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"^{path}: no model.safetensors in it; give a folder that tools.export"):
            models.load(str(path))
    file = tmp_path / "model.safetensors"
    tensorfile.write(str(file), {"t": (torch.float32, (2,))}, [torch.ones(2)])
    with pytest.raises(ValueError, match="model.safetensors: holds tensors, but no record of an ITIT model"):
        models.load(str(tmp_path))
    for record in ("{", "[]", '{"config": {}}', '{"config": {"model": {"embed_dimm": 3}}}'):
        tensorfile.write(str(file), {"t": (torch.float32, (2,))}, [torch.ones(2)], {weights.RECORD: record})
        with pytest.raises(ValueError, match=f"^{file}: "):
            models.load(str(tmp_path))
    config = small.small()
    save_itit(file, config)
    data = file.read_bytes()
    changed = data.replace(b'\\"embed_dim\\": 32', b'\\"embed_dim\\": 64')
    assert changed != data
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="its tensors do not fit its record: size mismatch for"):
        models.load(str(tmp_path))
    _, hashes = save_itit(file, config)
    weightsdir.write_hashes(str(tmp_path), {"model.safetensors": hashes})
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match="model.safetensors: damaged or replaced"):
        models.load(str(tmp_path))
