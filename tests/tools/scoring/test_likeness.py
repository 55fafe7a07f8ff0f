"""PSNR and SSIM against their definitions, with scipy's filters."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from tools.scoring.likeness import MAX_PSNR, psnr, ssim


def pairs():
    """uint8 [4, H, W, 3] twice: noise, smooth with noise on it, equal, black and white."""
    rng = np.random.default_rng()
    height, width = rng.integers(16, 40, 2)
    a = rng.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    a[1] = scipy.ndimage.gaussian_filter(a[1].astype(float), (3, 3, 0)).astype(np.uint8)
    b = rng.integers(0, 256, a.shape, dtype=np.uint8)
    b[1] = np.clip(a[1] + rng.normal(0, 8, a[1].shape), 0, 255)
    b[2], a[3], b[3] = a[2], 0, 255
    return a, b


def expected_ssim(x, y):
    """One channel as scikit-image's structural_similarity with gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False and data_range=255 does it: filter with reflecting edges, drop five pixels of them."""

    def smooth(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, truncate=3.5)

    x, y = x.astype(float), y.astype(float)
    ux, uy = smooth(x), smooth(y)
    vx, vy, vxy = smooth(x * x) - ux * ux, smooth(y * y) - uy * uy, smooth(x * y) - ux * uy
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    each = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return each[5:-5, 5:-5].mean()


def test_ssim():
    a, b = pairs()
    found = ssim(torch.from_numpy(a), torch.from_numpy(b))
    expected = [np.mean([expected_ssim(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found[2] == pytest.approx(1, abs=1e-12) and found[3] < 1e-3 < found[1]
    with pytest.raises(ValueError, match="10 x 20 pixels: SSIM needs at least 11"):
        ssim(torch.zeros(1, 10, 20, 3), torch.zeros(1, 10, 20, 3))


def test_psnr():
    a, b = pairs()
    found = psnr(torch.from_numpy(a), torch.from_numpy(b))
    for n in (0, 1):
        error = np.mean([(int(x) - int(y)) ** 2 for x, y in zip(a[n].flat, b[n].flat, strict=True)])
        assert found[n].item() == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))
    assert found[2] == MAX_PSNR and found[3] == 0
