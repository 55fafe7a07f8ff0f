"""The discriminator's losses by NumPy, its blur by hand, and R1 by finite differences."""

import numpy as np
import pytest
import torch

from tests.helpers.tiny import seeds
from tools.training import discriminator as gan


def small(seed, image_size=8):
    torch.manual_seed(seed)
    return gan.Discriminator(image_size, 2).double()


def test_losses_by_numpy():
    real, fake = torch.randn(7, dtype=torch.float64) * 3, torch.randn(7, dtype=torch.float64) * 3
    r, f = 1 / (1 + np.exp(-real.numpy())), 1 / (1 + np.exp(-fake.numpy()))  # the chance of being real
    assert gan.generator_loss(fake).item() == pytest.approx(-np.log(f).mean())
    assert gan.discriminator_loss(real, fake).item() == pytest.approx(-np.log(r).mean() - np.log(1 - f).mean())


def test_the_generators_gradient_stays_where_the_discriminator_is_sure():
    """Non-saturating: at a score of -20 the gradient is -1 and not 0."""
    score = torch.tensor([-20.0], requires_grad=True)
    gan.generator_loss(score).backward()
    assert score.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("seed", seeds(1))
def test_r1_by_finite_differences(seed):
    network, step = small(seed), 1e-6
    pictures = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    found = gan.gradient_penalty(network(pictures), pictures)
    squares = []
    for picture in pictures.detach():
        moves = step * torch.eye(picture.numel(), dtype=torch.float64).view(-1, *picture.shape)
        with torch.no_grad():
            slopes = (network(picture + moves) - network(picture - moves)) / (2 * step)
        squares.append(slopes.square().sum().item())
    assert found.item() == pytest.approx(sum(squares) / 2, rel=1e-5) and min(squares) > 0


@pytest.mark.parametrize("seed", seeds(1))
def test_r1_can_be_minimised(seed):
    """Its own gradient, by a weight of every layer, against finite differences."""
    network, step = small(seed), 1e-6
    pictures = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty():
        return gan.gradient_penalty(network(pictures), pictures)

    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    assert len(weights) == 7
    for p, gradient in zip(weights, torch.autograd.grad(penalty(), weights), strict=True):
        place = np.unravel_index(int(gradient.abs().argmax()), gradient.shape)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[place] += sign * step
            values.append(penalty().item())
            with torch.no_grad():
                p[place] -= sign * step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_a_score_depends_on_its_picture_alone_and_sizes_may_be_odd():
    for side in (8, 12, 18):
        network = small(0, side)
        pictures = torch.randn(3, 3, side, side, dtype=torch.float64)
        torch.testing.assert_close(network(pictures)[1:2], network(pictures[1:2]))


def test_halving_blurs_by_the_outer_product_of_1_3_3_1():
    block = small(0).blocks[0]
    spot = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    spot[0, 1, 3, 4] = 1.0
    row = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    found = block._halve(spot)[0]
    assert found.shape == (2, 4, 4) and not found[0].any()
    # The window of an output r covers the pixels 2r - 1 .. 2r + 2.
    expected = np.zeros((4, 4))
    for r in range(4):
        for c in range(4):
            dr, dc = 3 - (2 * r - 1), 4 - (2 * c - 1)
            if 0 <= dr < 4 and 0 <= dc < 4:
                expected[r, c] = row[dr] * row[dc]
    np.testing.assert_allclose(found[1], expected)
