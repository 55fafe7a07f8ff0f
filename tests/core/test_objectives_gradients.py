"""Which parameter learns from which objective: the whole table, and the isolation of the two estimators."""

import pytest
import torch

from itit.tasks import LOSSES
from tests.helpers.tiny import gradients, loss_of, make_case, seeds

# Groups of parameters by the beginning of their names; the longest that fits counts.
GROUPS = {
    "encoder.": "encoder", "image_decoder.": "image decoder", "text_decoder.": "text decoder",
    "text_decoder.memory_": "memory projection",
}  # fmt: skip
# Objective, its flags -> the groups that learn from it; all parameters of the others have a gradient of exactly zero.
ALL = {"encoder", "image decoder", "text decoder", "memory projection"}
CAPTION, PICTURE = ALL - {"image decoder"}, {"encoder", "image decoder"}
PSEUDO, STOPPED = {"half_cycle": "pseudo_pair"}, {"half_cycle": "stop_gradient"}
TABLE = [
    ("t2i", {}, PICTURE),
    ("i2t", {}, CAPTION),
    ("i2t_i2i", {}, PICTURE),
    ("i2i", {}, PICTURE),
    ("t2t", {}, {"text decoder"}),
    ("t2i2t", {"t2i2t": "full"}, ALL),
    ("t2i2t", {"t2i2t": "half"} | PSEUDO, CAPTION),
    ("t2i2t", {"t2i2t": "half"} | STOPPED, CAPTION),
    ("i2t2i", {"i2t2i": "full"}, ALL),
    ("i2t2i", {"i2t2i": "half"} | PSEUDO, PICTURE),
    ("i2t2i", {"i2t2i": "half"} | STOPPED, PICTURE),
]


def group(name):
    return GROUPS[max((start for start in GROUPS if name.startswith(start)), key=len)]


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize(("task", "flags", "learning"), TABLE)
def test_table_of_gradients(task, flags, learning, seed):
    case = make_case(seed, **flags)
    for name, grad in gradients(case.model, loss_of(case, task)).items():
        assert (grad != 0).any() == (group(name) in learning), f"{name} in {task} {flags}"
        assert torch.isfinite(grad).all()


def test_every_objective_is_in_the_table_and_no_t5_weight_learns():
    assert {loss for loss, _, _ in TABLE} == set(LOSSES)
    case = make_case(seeds(1)[0])
    sum(loss_of(case, task) for task, _, _ in TABLE).backward()
    assert len(list(case.t5.parameters())) > 10
    assert all(p.grad is None and not p.requires_grad for p in case.t5.parameters())


def test_the_image_half_of_image_to_text_can_be_off():
    case = make_case(seeds(1)[0], i2t_i2i_weight=0.0)
    assert loss_of(case, "i2t_i2i") == 0
    assert not loss_of(case, "i2t_i2i").requires_grad


@pytest.mark.parametrize("seed", seeds(2))
def test_a_full_t2i2t_adds_a_gradient_to_the_image_decoder_only(seed):
    grads = {}
    for form in ("full", "half"):
        case = make_case(seed, t2i2t=form, half_cycle="stop_gradient", text_grad_scale=1.0)
        grads[form] = gradients(case.model, loss_of(case, "t2i2t"))
    for name, grad in grads["half"].items():
        if name.startswith("image_decoder"):
            assert (grad == 0).all(), name
            assert (grads["full"][name] != 0).any(), name
        elif name == "encoder.token_embed.weight":  # tied: the head's share comes through the decoder
            assert not torch.equal(grads["full"][name], grad)
        else:
            torch.testing.assert_close(grads["full"][name], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", seeds(2))
def test_a_full_i2t2i_adds_a_gradient_to_the_text_decoder_only(seed):
    grads = {}
    for form in ("full", "half"):
        case = make_case(seed, i2t2i=form, half_cycle="stop_gradient")
        grads[form] = gradients(case.model, loss_of(case, "i2t2i"))
    for name, grad in grads["half"].items():
        if name.startswith("text_decoder"):
            assert (grad == 0).all(), name
            assert (grads["full"][name] != 0).any(), name
        else:
            torch.testing.assert_close(grads["full"][name], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("task", ["i2t", "i2t_i2i", "t2i2t", "i2t2i"])
def test_the_scale_multiplies_what_reaches_encoder_and_image_decoder_from_a_caption_loss(task, seed):
    losses, grads = zip(*(_scaled(seed, task, scale) for scale in (0.1, 1.0)), strict=True)
    assert torch.equal(*losses)
    for name, grad in grads[0].items():
        through = task in ("i2t", "t2i2t") and not name.startswith("text_decoder")
        scale = grads[1][name].abs().max().item()
        torch.testing.assert_close(
            grads[1][name],
            (10 if through else 1) * grad,
            rtol=1e-3,
            atol=1e-5 * scale,
            msg=lambda m, n=name: f"{n} {m}",
        )


def _scaled(seed, task, scale):
    case = make_case(seed, text_grad_scale=scale)
    loss = loss_of(case, task)
    return loss.detach(), gradients(case.model, loss)


def test_the_tied_table_can_be_detached_from_the_image_head():
    seed = seeds(1)[0]
    used = {}
    for detached in (False, True):
        case = make_case(seed, detach_tied_table=detached)
        rows = gradients(case.model, loss_of(case, "t2i"))["encoder.token_embed.weight"].abs().sum(1) > 0
        seen = case.image_ids.gather(1, case.t2i_masking.kept)
        seen = set(seen[~case.t2i_masking.mask.gather(1, case.t2i_masking.kept)].tolist()) | {32}
        used[detached] = set(rows.nonzero()[:, 0].tolist())
        assert used[detached] == (seen if detached else set(range(33))), f"seed {seed}"
