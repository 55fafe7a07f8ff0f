"""How much two pictures are alike: PSNR and SSIM.

Shapes: B pictures, H height, W width.
"""

import torch
import torch.nn.functional as F

MAX_PSNR = 100.0  # dB; what equal pictures count as, so that a mean stays finite
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of each pair of uint8 [B, H, W, 3]: float64 [B], at most MAX_PSNR."""
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).clamp(max=MAX_PSNR)


def ssim(a, b):
    """Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of each pair of uint8 [B, H, W, 3].

    Gaussian windows of 11 x 11 pixels, sigma 1.5, that lie in the picture as a whole; each colour by itself.

    Returns:
      float64 [B], 1 for equal pictures.

    Raises:
      ValueError: for pictures with a side below 11 pixels.
    """
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"pictures of {a.shape[1]} x {a.shape[2]} pixels: SSIM needs at least {WINDOW}")
    a, b = (pictures.double().movedim(-1, 1) for pictures in (a, b))
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (brightness * structure).mean((1, 2, 3))


def _blur(x):
    """[B, 3, H, W] -> [B, 3, H - 10, W - 10], rows and then columns."""
    taps = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(taps**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)  # [3, 1, 1, 11]
    return F.conv2d(F.conv2d(x, weights, groups=x.shape[1]), weights.transpose(2, 3), groups=x.shape[1])
