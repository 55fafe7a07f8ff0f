"""GELU, exact and by tanh, against the normal distribution."""

import scipy.stats
import torch
import torch.nn.functional as F

from itit.models import gelu as module
from itit.models import product
from itit.models.gelu import TanhGelu, gelu
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


def numbers():
    return torch.cat([torch.randn(20000) * scale for scale in (1, 3, 30, 1e4)]).requires_grad_()


def exact(x):
    return x.detach().double() * torch.from_numpy(scipy.stats.norm.cdf(x.detach().double().numpy()))


def slope(x):
    x = x.detach().double().numpy()
    return torch.from_numpy(scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x))


def test_exact_where_it_is_not_xlas_bfloat16(monkeypatch):
    x = numbers()
    torch.testing.assert_close(gelu(x.double()), exact(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(gelu(x), F.gelu(x))  # whose sum of 1 and what is near -1 loses in float32
    assert torch.equal(gelu(x.bfloat16()), F.gelu(x.bfloat16()))
    for part in (module, product):
        monkeypatch.setattr(part, "on_xla", lambda x: True)
    assert torch.equal(gelu(x), F.gelu(x))
    assert torch.equal(gelu(x.bfloat16()), TanhGelu.apply(x.bfloat16()))
    weights = torch.randn_like(x)
    found, expected = (torch.autograd.grad((f(x) * weights).sum(), x)[0] for f in (gelu, F.gelu))
    assert torch.equal(found, expected)


def test_by_tanh_it_is_as_near_as_it_says():
    x = numbers()
    y = TanhGelu.apply(x)
    assert ((y - exact(x)).abs() <= 2.6e-5 + 1e-6 * x.abs()).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad - slope(x)).abs().max() < 2e-4
    assert y.isfinite().all() and (y[x > 6] == x[x > 6]).all() and (y[x < -6].abs() < 1e-5).all()


def test_by_tanh_rounded_it_is_what_the_exact_one_rounds_to_or_next_to_it():
    x = numbers().detach().bfloat16().requires_grad_()
    y, expected = TanhGelu.apply(x), exact(x)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - expected).abs() <= 2.6e-5 + expected.abs() * 2**-8).all()
    weights = torch.randn_like(x)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    assert grad.dtype == torch.bfloat16
    assert (
        (grad.double() - slope(x) * weights.double()).abs() <= (2e-4 + slope(x).abs() * 2**-8) * weights.abs()
    ).all()
