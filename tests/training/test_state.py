"""What mains begin with: frozen parts from their folders, fresh and saved states."""

import numpy as np
import pytest
import torch

from itit.backends.local import Local
from itit.checkpoint import shards, store, weightsdir
from itit.config import T5Config, VqganConfig
from itit.models import VQGAN, T5Encoder
from itit.training.state import frozen, image_ids_of, load_state, make_state, make_text_encoder, make_vqgan
from itit.training.taken import settle
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

BACKEND = Local("cpu")
VQGAN_SIZES = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                          codebook_size=40)  # fmt: skip


def save_vqgan(folder):
    vqgan = VQGAN(VQGAN_SIZES)
    weightsdir.save(str(folder), vqgan.state_dict(), VQGAN_SIZES)
    return vqgan


def test_the_text_encoder_is_the_given_one_and_frozen(tmp_path):
    sizes = T5Config(size="nano", dim=48, head_dim=8, ff_dim=32, num_layers=1, num_heads=2, vocab_size=48)
    t5 = T5Encoder(sizes)
    t5.init_weights(3)
    weightsdir.save(str(tmp_path), t5.state_dict(), sizes)
    state = make_state(settle(small.small(t5_weights=str(tmp_path))), BACKEND)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(state.t5.parameters(), t5.parameters(), strict=True))
    assert not any(p.requires_grad for p in state.t5.parameters())


def test_the_image_tokenizer_is_the_saved_one_and_frozen(tmp_path):
    saved = save_vqgan(tmp_path)
    found = make_vqgan(small.small(vqgan=str(tmp_path), image_size=16), BACKEND)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), saved.parameters(), strict=True))
    assert make_vqgan(small.small(), BACKEND) is None


def test_a_fresh_state_is_of_the_seed_alone():
    states = []
    for seed in (3, 3, 4):
        torch.seed()
        states.append(make_state(small.small(seed=seed, ema_decay=0.9), BACKEND))
    first, again, other = (state.tensors() for state in states)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert {name.split("/")[0] for name in first} == {"model", "optimizer", "ema"}
    assert make_state(small.small(), BACKEND).ema is None


def saved_as(tmp_path, tensors):
    """A reader of these tensors."""
    path = str(tmp_path / "state.safetensors")
    return shards.Reader({path: shards.write(path, store.whole(tensors))})


def test_saved_tensors_come_back_into_a_state(tmp_path):
    saved = {name: torch.rand(t.shape).to(t.dtype) for name, t in make_state(small.small(ema_decay=0.9), BACKEND)
             .tensors().items()}  # fmt: skip
    state = make_state(small.small(ema_decay=0.9), BACKEND)
    meta = {"frozen": frozen(state)}
    load_state(state, saved_as(tmp_path, saved), meta, "run", BACKEND)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.tensors().items())
    name = next(iter(saved))
    with pytest.raises(ValueError, match=f"^run: no {name} in it"):
        load_state(state, saved_as(tmp_path, {k: v for k, v in saved.items() if k != name}), meta, "run", BACKEND)
    with pytest.raises(ValueError, match=rf"^run: {name} is \(2, 3\), this run has "):
        load_state(state, saved_as(tmp_path, saved | {name: torch.zeros(2, 3)}), meta, "run", BACKEND)
    later = make_state(small.small(ema_decay=0.9, skip_spikes=4.0), BACKEND)  # switched on when there were some
    load_state(later, saved_as(tmp_path, saved), meta, "run", BACKEND)
    assert all(torch.equal(tensor, saved.get(name, torch.zeros(()))) for name, tensor in later.tensors().items())
    assert later.tensors().keys() - saved.keys() == {"optimizer/usual_norm"}


def test_other_frozen_weights_are_refused(tmp_path):
    save_vqgan(tmp_path)
    sizes = {"vqgan": str(tmp_path), "image_size": 16}
    state = make_state(small.small(**sizes), BACKEND)
    meta, saved = {"frozen": frozen(state)}, saved_as(tmp_path, state.tensors())
    load_state(make_state(small.small(compute_dtype="bf16", **sizes), BACKEND), saved, meta, "run", BACKEND)
    load_state(make_state(small.small(), BACKEND), saved, meta, "run", BACKEND)  # pictures may be ready ids
    with pytest.raises(ValueError, match="^--t5_weights: run was trained with other weights"):
        load_state(make_state(small.small(t5_seed=1, **sizes), BACKEND), saved, meta, "run", BACKEND)
    save_vqgan(tmp_path)
    with pytest.raises(ValueError, match="^--vqgan: run was trained with other weights"):
        load_state(make_state(small.small(**sizes), BACKEND), saved, meta, "run", BACKEND)


def test_codes_of_samples_in_both_forms(tmp_path):
    save_vqgan(tmp_path)
    state = make_state(small.small(vqgan=str(tmp_path), image_size=16), BACKEND)
    rng = np.random.default_rng()
    pictures, ids = rng.integers(256, size=(3, 16, 16, 3), dtype=np.uint8), rng.integers(40, size=(3, 16))
    batch = BACKEND.to_device({"images": pictures, "text_ids": ids})
    assert torch.equal(batch["text_ids"], torch.tensor(ids))
    assert torch.equal(image_ids_of(batch, state), state.vqgan.tokenize(torch.tensor(pictures)))
    assert torch.equal(image_ids_of(BACKEND.to_device({"image_ids": ids}), state), torch.tensor(ids))


def test_fingerprints_are_taken_before_the_weights_leave_the_host(tmp_path):
    """Nothing can be read back from "meta", which stands for the devices."""

    class Away(Local):
        def adopt(self, module):
            return module.to("meta") if isinstance(module, (T5Encoder, VQGAN)) else module

    save_vqgan(tmp_path)
    config = small.small(vqgan=str(tmp_path), image_size=16)
    here = frozen(make_state(config, BACKEND))
    assert here.keys() == {"t5_weights", "vqgan"}
    t5, vqgan = make_text_encoder(config, Away("cpu")), make_vqgan(config, Away("cpu"))
    assert all(p.device.type == "meta" for part in (t5, vqgan) for p in part.parameters())
    assert {"t5_weights": t5.fingerprint, "vqgan": vqgan.fingerprint} == here
    assert make_text_encoder(small.small(t5_seed=1), BACKEND).fingerprint != here["t5_weights"]
