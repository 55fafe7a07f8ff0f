"""Masking law, exact counts, dropping and decode schedule against scipy, sets and the lists of the specification."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from itit.masking import decode_schedule, draw_masking, drop_masked, keep_all, mask_ratio, num_dropped
from tests.helpers.tiny import make_case, seeds

SIZES = [(256, 128), (64, 32), (16, 8)]


@pytest.mark.parametrize("seed", seeds(5))
def test_ratio_is_the_quantile_function_of_the_truncated_normal(seed):
    random = np.random.default_rng(seed)
    mode, std = random.uniform(0.4, 0.9), random.uniform(0.1, 0.5)
    low, high = random.uniform(0.1, mode - 0.05), random.uniform(mode + 0.05, 1.0)
    uniform = random.uniform(0.001, 0.999, 1000)
    expected = stats.truncnorm((low - mode) / std, (high - mode) / std, mode, std).ppf(uniform)
    found = mask_ratio(torch.tensor(uniform, dtype=torch.float32), mode, std, low, high)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("high", "mean"), [(1.0, 0.750), (0.75, 0.635)])
def test_moments_of_the_papers_two_laws(high, mean):
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    found = mask_ratio(uniform, 0.75, 0.25, 0.5, high).double()
    law = stats.truncnorm(-1, (high - 0.75) / 0.25, 0.75, 0.25)
    assert abs(found.mean() - mean) < 0.0005
    assert abs(found.mean() - law.mean()) < 0.0001
    assert abs(found.var() - law.var()) < 0.0001
    assert found.min() >= 0.5
    assert found.max() <= high


def test_ratio_stays_inside_its_bounds_at_the_extreme_draws():
    extremes = torch.tensor([2.0**-25, 1 - 2.0**-24])
    for high in (0.75, 1.0):
        found = mask_ratio(extremes, 0.75, 0.25, 0.5, high)
        assert 0.5 <= found[0] < 0.5001
        assert high - 0.0001 < found[1] <= high


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize(("num_tokens", "dropped"), SIZES)
def test_masking_against_sets(num_tokens, dropped, seed):
    random = np.random.default_rng(seed)
    ratios = np.array([0.5, 0.63, 1.0, *random.uniform(0.5, 1.0, 9)], dtype=np.float32)
    noise = np.stack([random.permutation(num_tokens) for _ in ratios]) / num_tokens
    masking = draw_masking(torch.tensor(ratios), torch.tensor(noise), dropped)
    assert masking.kept.shape == (len(ratios), num_tokens - dropped)
    for row, ratio in enumerate(ratios):
        by_noise = sorted(range(num_tokens), key=lambda slot, row=row: noise[row, slot])
        masked = set(by_noise[: math.ceil(num_tokens * float(ratio))])
        kept = masking.kept[row].tolist()
        assert set(masking.mask[row].nonzero()[:, 0].tolist()) == masked
        assert kept == sorted(by_noise[dropped:]), "kept slots are ascending and all but the lowest"
        assert set(range(num_tokens)) - set(kept) <= masked, "what is dropped is masked"


def test_edges_of_the_ratio():
    masking = draw_masking(torch.tensor([0.5, 0.63, 1.0]), torch.rand(3, 256), 128)
    assert masking.mask.sum(1).tolist() == [128, 162, 256]
    assert masking.mask.gather(1, masking.kept).sum(1).tolist() == [0, 34, 128]


def test_equal_noise_still_masks_the_exact_number():
    masking = draw_masking(torch.tensor([0.7, 0.5]), torch.zeros(2, 64), 32)
    assert masking.mask.sum(1).tolist() == [45, 32]
    assert all(len(set(row)) == 32 for row in masking.kept.tolist())
    hidden = masking.mask.clone().scatter(1, masking.kept, True)
    assert hidden.all(), "every dropped slot is masked"


@pytest.mark.parametrize("ratio_min", [0.5, 0.55, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num_tokens", [256, 64, 100, 9])
def test_no_ratio_masks_less_than_is_dropped(num_tokens, ratio_min):
    dropped = num_dropped(num_tokens, ratio_min)
    assert num_tokens * ratio_min - 1 < dropped <= num_tokens * ratio_min + 1e-9
    ratio = mask_ratio(torch.rand(50), 0.75, 0.25, ratio_min, 1.0)
    assert draw_masking(ratio, torch.rand(50, num_tokens), dropped).mask.sum(1).min() >= dropped


def test_nothing_dropped_and_masked_ones_dropped():
    mask = torch.rand(6, 64) < 0.8
    whole = keep_all(mask)
    assert torch.equal(whole.mask, mask)
    assert whole.kept.tolist() == [list(range(64))] * 6
    dropped = int(mask.sum(1).min())
    noise = torch.rand(6, 64)
    masking = drop_masked(mask, noise, dropped)
    assert torch.equal(masking.mask, mask)
    for row in range(6):
        by_noise = sorted(range(64), key=lambda slot, row=row: noise[row, slot])
        gone = [slot for slot in by_noise if mask[row, slot]][:dropped]
        assert masking.kept[row].tolist() == sorted(set(range(64)) - set(gone))


@pytest.mark.parametrize("num_masked", [256, 203, 142, 128])
def test_the_encoder_meets_the_same_layouts_in_generation_as_in_training(num_masked):
    """What is kept of each half of the picture, seen and masked: the mean and the spread over many samples."""
    rows = 4000
    trained = draw_masking(torch.full((rows,), num_masked / 256), torch.rand(rows, 256), 128)
    generated = drop_masked(trained.mask[torch.randperm(rows)], torch.rand(rows, 256), 128)
    for of_masked in (True, False):
        halves = []
        for masking in (trained, generated):
            kept = masking.mask.gather(1, masking.kept) == of_masked
            halves.append((kept & (masking.kept < 128)).sum(1).double())
        assert abs(halves[0].mean() - halves[1].mean()) < 5 * 2**0.5 * 8 / rows**0.5
        assert abs(halves[0].std() - halves[1].std()) < 0.5


def test_decode_schedule_equals_the_lists_of_the_specification():
    masked = [256, 255, 253, 251, 247, 242, 236, 229, 221, 212, 203, 192, 181, 168, 155, 142, 128, 113, 97, 82, 66, 49,
              33, 16]  # fmt: skip
    committed = [1, 2, 2, 4, 5, 6, 7, 8, 9, 9, 11, 11, 13, 13, 13, 14, 15, 16, 15, 16, 17, 16, 17, 16]
    found = decode_schedule(256, 24)
    assert found == masked
    assert [a - b for a, b in zip(found, [*found[1:], 0], strict=True)] == committed


@pytest.mark.parametrize("seed", seeds(2))
def test_the_encoder_sees_the_kept_tokens_as_if_none_were_dropped(seed):
    case = make_case(seed)
    seen = []
    case.model.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for masking in (case.t2i_masking, keep_all(case.t2i_masking.mask)):
        case.model.encode(case.model.embed(case.image_ids, masking), masking, case.text)
    few, whole = seen
    kept = case.t2i_masking.kept
    for row in range(len(kept)):
        assert torch.equal(few[row, : kept.shape[1]], whole[row, kept[row]])
        assert torch.equal(few[row, kept.shape[1] :], whole[row, case.image_ids.shape[1] :])
