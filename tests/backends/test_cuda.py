"""What a GPU demands of the core, without a GPU: everything lies on one device, and the host never waits for it.

Whole steps and all generation run on the device "meta", whose tensors have shapes and no numbers; each operation is
checked, and what would read a number fails. (torch can fake tensors of CUDA itself, but 2.9 and 2.11 take none through
a backward pass where there is no driver.) The one place that asks for CUDA by name, attention, is tested by itself.
"""

import contextlib

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from itit import inference
from itit.backends.local import Local
from itit.config import VqganConfig
from itit.models import VQGAN, ITITModel, encode_text, layers
from itit.noise import Noise
from itit.samples import Translator
from itit.tasks import LOSSES, TASKS
from itit.train_step import tasks, train_step
from itit.training.state import make_state
from tests.helpers import small
from tests.helpers.tiny import draw_flags, seeds

DEVICE = torch.device("meta")
BATCHES = {f"{task}_batch": 4 for task in TASKS}
SIZES = BATCHES | dict(depth=1, image_decoder_depth=1, text_decoder_depth=1, num_text_tokens=4, num_decode_steps=2,
                       ema_decay=0.9, t2i2t_warmup_steps=0, i2t2i_warmup_steps=0)  # fmt: skip
VQGAN_SIZES = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                          codebook_size=40)  # fmt: skip


class Watch(TorchDispatchMode):
    """Raises AssertionError at an operation that mixes tensors of the processor and of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.device == DEVICE for t in read):
            # A single number of the host goes along with the launch of a kernel.
            assert all(t.device == DEVICE or t.ndim == 0 for t in read), f"{func} reads from processor and device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_copies():
    """A number of the host as a tensor of the device is a copy that the host waits for."""

    def refuse(make):
        def made(data, *args, device=None, **kwargs):
            assert device is None or torch.device(device) != DEVICE or isinstance(data, torch.Tensor), (
                f"{data} is copied to the device"
            )
            return make(data, *args, device=device, **kwargs)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, refuse(getattr(torch, name)))
        yield


class Draws(Noise):
    """Noise without a generator, which "meta" does not have."""

    def __call__(self, name, shape):
        return torch.rand(shape, device=self.device)


class MetaBackend(Local):
    """The processor's backend, there."""

    def noise(self, seed, step, part=0, rows=None):
        return Draws(seed, step, self.device, part, rows)


def make_meta_state(config):
    """A State on the device, with an image tokenizer."""
    return make_state(config, Local(DEVICE))._replace(vqgan=VQGAN(VQGAN_SIZES).to(DEVICE).requires_grad_(False))


def make_batch(config, pictures):
    """Inputs of a step: "task/field" -> tensor without numbers."""
    shapes = {"images": (4, 16, 16, 3), "image_ids": (4, config.model.num_image_tokens),
              "text_ids": (4, config.model.num_text_tokens)}  # fmt: skip
    dtypes = {"images": torch.uint8}
    image = "images" if pictures else "image_ids"
    return {
        f"{task}/{field}": torch.zeros(shapes[field], dtype=dtypes.get(field, torch.long), device=DEVICE)
        for task in tasks(config, 0)
        for field, there in ((image, TASKS[task].has_picture), ("text_ids", TASKS[task].has_text))
        if there
    }


def run_step(pictures=False, **flags):
    """State and metrics of a watched step, the second one: tables are copied to the device once."""
    config = small.small(**SIZES | flags)
    state, batch, noises = make_meta_state(config), make_batch(config, pictures), [Draws(0, 0, DEVICE)]
    for copies in (contextlib.nullcontext(), no_copies()):
        with Watch(), copies:
            metrics = train_step(state, batch, noises, 0.01, config, tasks(config, 0))
    return state, metrics


@pytest.mark.parametrize("seed", [None, *seeds(3)])
def test_a_step_stays_on_the_device(monkeypatch, seed):
    flags = {"pictures": True} if seed is None else draw_flags(seed) | {"t2i_text_drop_prob": 0.1}
    # The image tokenizer switches autocast off; "meta" does not have it.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    state, metrics = run_step(**flags)
    assert metrics.keys() == {"loss", "grad_norm", "skipped", *(f"loss/{name}" for name in LOSSES)}
    for name, tensor in (metrics | state.tensors()).items():
        assert tensor.device == DEVICE, name


def test_generation_stays_on_the_device():
    config = small.small(**SIZES)
    state, noise = make_meta_state(config), Draws(0, 0, DEVICE)
    texts = torch.zeros(4, config.model.num_text_tokens, dtype=torch.long, device=DEVICE)
    for copies in (contextlib.nullcontext(), no_copies()):  # tables are copied to the device once
        with Watch(), copies:
            translator = Translator(state, config, MetaBackend(DEVICE), 0)
            images = translator.pictures(texts)
            found = [images, translator.captions(images), translator.captions(images, greedy=True)]
            text, empty = encode_text(state.t5, texts), state.empty_text()
            found.append(
                inference.generate(state.model, text, empty, noise, config.decode, guided=False, image_ids=images)
            )
            found.append(state.vqgan.to_pixels(images))
    assert {tensor.device for tensor in found} == {DEVICE}


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.ones(grad.shape)


@pytest.mark.parametrize("wrong, message", [
    (lambda x: x + torch.ones(x.shape), "add.* reads from processor and device"),
    (WrongBackward.apply, "mul.* reads from processor and device"),
    (lambda x: x[torch.zeros(len(x), dtype=torch.long)], "index.* reads from processor and device"),
    (lambda x: x.cpu().to(DEVICE), "Cannot copy out of meta"),
    (lambda x: x + torch.tensor(1.0, device=DEVICE), "1.0 is copied to the device"),
    (lambda x: x * x.detach().sum().item(), "item"),
    (lambda x: x[x[:, 0, 0] > 0], "nonzero"),  # its shape depends on the numbers
], ids=["fresh", "fresh in backward", "index", "cpu", "number", "item", "boolean index"])  # fmt: skip
def test_a_mistake_in_the_model_is_found(monkeypatch, wrong, message):
    logits = ITITModel.image_logits
    monkeypatch.setattr(ITITModel, "image_logits", lambda *args, **kwargs: wrong(logits(*args, **kwargs)))
    others = {name: 0 for name in BATCHES if name != "t2i_batch"}
    with pytest.raises((AssertionError, RuntimeError), match=message):
        run_step(t2i2t="off", i2t2i="off", **others)


class SaysCuda(torch.Tensor):
    """Takes the branch of CUDA, and is computed on the processor."""

    device = torch.device("cuda")


@pytest.mark.parametrize("masked", [True, False])
def test_attention_on_cuda_equals_that_on_the_processor(monkeypatch, masked):
    kernel, rates = torch.nn.functional.scaled_dot_product_attention, []

    def record(q, k, v, mask, rate):
        rates.append(rate)
        return kernel(q, k, v, mask, rate)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    torch.seed()
    attention, x = layers.Attention(12, 3, 0.25).eval(), torch.randn(2, 5, 12)
    mask = (torch.rand(2, 1, 1, 5) < 0.5) | (torch.arange(5) == 2) if masked else None
    expected = attention(x, mask)
    assert not rates
    found = attention(x.as_subclass(SaysCuda), mask)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)
    attention.train()(x.as_subclass(SaysCuda), mask)
    assert rates == [0.0, 0.25]
