"""A step, generation and a run on a real GPU, against plain torch on the processor. Skipped where there is no GPU.

test_cuda.py checks, without one, on which device every tensor lies.
"""

import pytest
import torch

from itit.backends.connect import connect
from itit.backends.local import Local
from itit.config import TrainConfig, VqganConfig
from itit.models import VQGAN, encode_text
from itit.models.layers import set_compute_dtype
from itit.samples import Translator
from itit.train_step import tasks, train_step
from itit.training.state import DTYPES
from tests.helpers.backend_parity import (
    CPU,
    Counted,
    check_bfloat16,
    check_losses_and_gradients,
    config_of,
    differs,
    states,
)
from tests.helpers.tiny import random_batch, randomize, seeds
from tests.training.test_train import run_here, same, settings, write_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def repeatable():
    """Full precision, and sums in a fixed order: torch's fast kernel for an embedding's gradient is not repeatable."""
    connect(TrainConfig(backend="cuda"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu():
    return Counted("cuda")


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("flags", [
    dict(t2i_text_drop_prob=0.3),
    dict(dropout=0.0),  # attention by torch's fused kernels
    dict(dropout=0.0, num_microbatches=2, synth_drop_masked=True, text_memory="all", class_token=True,
         text_key_mask=True, empty_text="learned"),
], ids=["dropout", "fused attention", "flags"])  # fmt: skip
def test_losses_and_gradients_equal_those_on_the_processor(gpu, flags, seed):
    check_losses_and_gradients(gpu, config_of(**flags), seed)


@pytest.mark.parametrize("seed", seeds(1))
def test_bfloat16_is_as_near_as_its_precision(gpu, seed):
    check_bfloat16(gpu, seed)


def steps(backend, config, seed, count, pictures=False):
    """Metrics of steps with batches and rates of their own, and the State at the end."""
    _, state = states(backend, config, seed)
    if pictures:
        vqgan = VQGAN(VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1,
                                  latent_dim=4, codebook_size=config.model.codebook_size))  # fmt: skip
        randomize(vqgan, seed)
        state = state._replace(vqgan=vqgan.cuda().requires_grad_(False))
    set_compute_dtype(state.model, DTYPES[config.train.compute_dtype])
    found = []
    for number in range(count):
        batch = {name: x.to("cuda") for name, x in random_batch(config, 100 + number).items()}
        for key in [key for key in batch if pictures and key.endswith("/image_ids")]:
            pixels = batch.pop(key)[:, :, None, None] * 7 % 256
            batch[key.replace("image_ids", "images")] = pixels.expand(-1, -1, 16, 3).to(torch.uint8)
        noises = [backend.noise(5, number, part) for part in range(config.optim.num_microbatches)]
        arguments = train_step, state, batch, noises, 1e-3 * (number + 1), config, tasks(config, number)
        # The first step of a kind copies tables, the second is recorded.
        torch.cuda.set_sync_debug_mode("error" if number % 4 > 1 else "default")
        try:
            found.append(backend.whole(*arguments))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [{name: float(value) for name, value in values.items()} for values in found], state


def test_the_host_waits_for_nothing_in_a_step():
    values, _ = steps(Local("cuda"), config_of(ema_decay=0.9, skip_spikes=5.0), 1, 3)
    assert all(0 < x["loss"] < 100 for x in values)


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("flags", [
    dict(dropout=0.1), dict(dropout=0.0, num_microbatches=2), dict(compute_dtype="bf16", synth_drop_masked=True),
], ids=["dropout", "microbatches", "bf16"])  # fmt: skip
@pytest.mark.parametrize("pictures", [False, True], ids=["ids", "pictures"])
def test_replayed_graphs_equal_the_step_as_it_stands_bit_for_bit(flags, pictures, seed):
    """The cycles join on the way, which is another kind of step."""
    config = config_of(**flags, t2i2t_warmup_steps=4, i2t2i_warmup_steps=4, ema_decay=0.9, skip_spikes=5.0)
    expected, plain = steps(Local("cuda"), config, seed, 8, pictures)
    found, replayed = steps(Local("cuda", graphs=True), config, seed, 8, pictures)
    assert found == expected and len({values["loss"] for values in found}) == 8
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, replayed.tensors()[name]), name


def test_memory_does_not_grow():
    config = config_of()
    _, state = states(Local("cuda"), config, 1)
    batch = {name: x.to("cuda") for name, x in random_batch(config, 1).items()}
    for backend in (Local("cuda"), Local("cuda", graphs=True)):
        used = []
        for number in range(5):
            noises = [backend.noise(5, number)]
            backend.whole(train_step, state, batch, noises, 1e-3, config, tasks(config, number))
            used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        assert used[2] == used[3] == used[4]


@pytest.mark.parametrize("seed", seeds(1))
def test_generation_equals_that_on_the_processor(gpu, seed):
    """Pictures, captions by beam and greedy, and what torch's fused attention has no part in: caches."""
    config = config_of(num_decode_steps=3)
    plain, placed = states(gpu, config, seed)
    texts = random_batch(config, seed)["i2t/text_ids"]
    ours, theirs = Translator(plain, config, CPU, step=4), Translator(placed, config, gpu, step=4)
    images = ours.pictures(texts)
    assert torch.equal(theirs.pictures(texts.cuda()).cpu(), images)
    for greedy in (True, False):
        assert torch.equal(theirs.captions(images.cuda(), greedy).cpu(), ours.captions(images, greedy))
    expected, found = ours.candidates(images), theirs.candidates(images.cuda())
    torch.testing.assert_close(found.scores.cpu(), expected.scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", seeds(1))
def test_replayed_generation_equals_that_as_it_stands_bit_for_bit(seed):
    config = config_of(num_decode_steps=3)
    _, state = states(Local("cuda"), config, seed)
    texts = random_batch(config, seed)["i2t/text_ids"].cuda()
    backends, seen = (Local("cuda"), Local("cuda", graphs=True)), set()
    for number in range(4):
        plain, replayed = (Translator(state, config, backend, step=4) for backend in backends)
        rows = [number, 9, 8, 7, 6, 5, 4, 3]
        images = plain.pictures(texts, "a", rows)
        assert torch.equal(replayed.pictures(texts, "a", rows), images)
        for greedy in (True, False):
            assert torch.equal(replayed.captions(images, greedy), plain.captions(images, greedy))
        seen.add(tuple(images[0].tolist()))
    assert len(seen) == 4


@pytest.mark.parametrize("seed", seeds(1))
def test_frozen_parts_equal_those_on_the_processor(gpu, seed):
    config = config_of()
    plain, placed = states(gpu, config, seed)
    texts = random_batch(config, seed)["i2t/text_ids"]
    assert differs(encode_text(placed.t5, texts.cuda()).features, encode_text(plain.t5, texts).features) < 1e-5
    sizes = VqganConfig(image_size=32, channels=32, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=8,
                        codebook_size=64)  # fmt: skip
    vqgan = VQGAN(sizes)
    randomize(vqgan, seed)
    pictures = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        codes = vqgan.tokenize(pictures)
        pixels = vqgan.to_pixels(codes).int()
        assert len(codes.unique()) > 8
        vqgan.cuda()
        assert torch.equal(vqgan.tokenize(pictures.cuda()).cpu(), codes)
        assert (vqgan.to_pixels(codes.cuda()).cpu().int() - pixels).abs().max() <= 1  # a rounding at its edge


def test_a_run_goes_on_from_its_checkpoint_and_back_on_the_processor(tmp_path):
    write_ids(tmp_path / "ids.tfrecord", 24)
    common = settings(tmp_path, backend="cuda", ema_decay=0.9, num_microbatches=2, num_steps=12, dropout=0.1)
    whole, parts = (common | {"workdir": str(tmp_path / name)} for name in ("whole", "parts"))
    assert run_here(whole | {"stop_after_steps": 9}) == 0
    for count in (4, 5):
        assert run_here(parts | {"stop_after_steps": count}) == 0
    assert same(whole["workdir"], parts["workdir"])
    assert run_here(parts | {"backend": "cpu"}) == 0
