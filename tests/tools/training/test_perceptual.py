"""The perceptual distance against the formula of LPIPS and both networks written out from their tensors."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from itit.data import images
from tests.helpers.common import shared_data
from tests.helpers.tiny import seeds
from tools.training import perceptual

PIZZA, BROCCOLI = 963, 937  # classes of ImageNet


def random_tensors(kind, seed):
    torch.manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in kind().state_dict().items()}
    return {name: torch.randn(shape) * (2 / max(1, shape[1:].numel())) ** 0.5 if len(shape) > 1
            else torch.randn(shape) * 0.1 for name, shape in shapes.items()}  # fmt: skip


def squeezenet(t, pictures):
    """Features of SqueezeNet 1.0, straight on."""
    x = torch.stack([pictures[:, 2] * 255 - 104, pictures[:, 1] * 255 - 117, pictures[:, 0] * 255 - 123], 1)
    x = F.relu(F.conv2d(x, t["conv1.weight"], t["conv1.bias"], stride=2))
    found = [x]
    for number in range(2, 10):
        if number in (2, 5, 9):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        name = f"fire{number}."
        x = F.relu(F.conv2d(x, t[name + "conv1x1_1.weight"], t[name + "conv1x1_1.bias"]))
        one = F.conv2d(x, t[name + "conv1x1_2.weight"], t[name + "conv1x1_2.bias"])
        three = F.conv2d(x, t[name + "conv3x3_2.weight"], t[name + "conv3x3_2.bias"], padding=1)
        x = F.relu(torch.cat([one, three], 1))
        if number in (4, 8, 9):
            found.append(x)
    return found


def vgg16(t, pictures):
    """Features of VGG16, straight on, by the numbers that torchvision gives its layers."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pictures - mean[None, :, None, None]) / std[None, :, None, None]
    found = []
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        if found:
            x = F.max_pool2d(x, 2)
        for number in stage:
            x = F.relu(F.conv2d(x, t[f"features.{number}.weight"], t[f"features.{number}.bias"], padding=1))
        found.append(x)
    return found


def lpips(features, others, weights):
    """arXiv:1801.03924, equation 1, averaged over the batch."""
    total = 0.0
    for a, b, w in zip(features, others, weights, strict=True):
        a, b = (x.numpy().astype(np.float64) for x in (a, b))
        a, b = (x / np.sqrt((x * x).sum(1, keepdims=True) + 1e-10) for x in (a, b))
        batch, channels, height, width = a.shape
        for row in range(batch):
            for y in range(height):
                for x in range(width):
                    total += (w * (a[row, :, y, x] - b[row, :, y, x]) ** 2).sum() / (batch * height * width)
    return total


@pytest.mark.parametrize("kind, straight", [(perceptual.SqueezeNet, squeezenet), (perceptual.Vgg16, vgg16)])
@pytest.mark.parametrize("linear", [False, True])
def test_it_equals_the_formula(tmp_path, kind, straight, linear):
    tensors = random_tensors(kind, seeds(1)[0])
    a, b = torch.rand(2, 2, 3, 33, 33).unbind(0)
    path, linear_path = tmp_path / "network.safetensors", ""
    safetensors.torch.save_file(tensors, path)
    weights = [np.ones(width) for width in kind.widths]
    if linear:
        weights, linear_path = [np.random.rand(width).astype(np.float32) for width in kind.widths], tmp_path / "l.npz"
        np.savez(linear_path, **{f"lin{i}.model.1.weight": w[None, :, None, None] for i, w in enumerate(weights)})
    distance = perceptual.load(str(path), str(linear_path))
    expected = lpips(straight(tensors, a), straight(tensors, b), weights)
    assert distance(a, b).item() == pytest.approx(expected, rel=1e-4) and expected > 0.01
    assert distance(a, a).item() == 0.0


def test_gradients_reach_the_first_picture_and_nothing_else(tmp_path):
    safetensors.torch.save_file(random_tensors(perceptual.SqueezeNet, 0), tmp_path / "n.safetensors")
    distance = perceptual.load(str(tmp_path / "n.safetensors"))
    a, b = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32, requires_grad=True)
    distance(a, b).backward()
    assert a.grad.abs().sum() > 0 and b.grad is None
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    dark = torch.zeros(1, 3, 32, 32, requires_grad=True)  # features of nothing have no direction
    distance(dark, torch.ones(1, 3, 32, 32)).backward()
    assert torch.isfinite(dark.grad).all()


@pytest.mark.parametrize("name, number", [("000000160012.jpg", PIZZA), ("000000062554.jpg", BROCCOLI)])
def test_the_real_network_sees_what_is_there(name, number):
    """Orders of colours, mean and pools are right where the classifier upon the features is."""
    path = shared_data() / "squeezenet" / "squeezenet_v1.0_f32.npz"
    data = (shared_data() / "coco" / "images" / name).read_bytes()
    picture = torch.from_numpy(images.decode(data, 227, 10**9).copy()).permute(2, 0, 1)[None] / 255
    distance, tensors = perceptual.load(str(path)), perceptual.read(str(path))
    last = distance.network(picture)[-1]
    logits = F.relu(F.conv2d(last, tensors["conv_final.weight"], tensors["conv_final.bias"])).mean((2, 3))
    assert logits.argmax().item() == number
    noise = torch.randn_like(picture)
    near, far = ((picture + strength * noise).clamp(0, 1) for strength in (0.02, 0.2))
    assert 0 < distance(near, picture) < distance(far, picture)


def test_errors_name_the_file_and_the_tensor(tmp_path):
    tensors = random_tensors(perceptual.SqueezeNet, 0)
    path = str(tmp_path / "network.npz")
    np.savez(path, something=np.zeros(3))
    with pytest.raises(ValueError, match=r"neither SqueezeNet \(fire2.* nor Vgg16 .*first tensors are something"):
        perceptual.load(path)
    safetensors.torch.save_file(tensors | {"conv1.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"SqueezeNet's conv1.bias must be \(96,\), is \(3,\)"):
        perceptual.load(path)
    safetensors.torch.save_file({name: x for name, x in tensors.items() if name != "fire9.conv3x3_2.bias"}, path)
    with pytest.raises(ValueError, match="fire9.conv3x3_2.bias must be .* is absent"):
        perceptual.load(path)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"linear weights .* of widths \[\], must be \[96, 256, 512, 512\]"):
        perceptual.load(path, path)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="neither safetensors nor npz"):
        perceptual.load(str(tmp_path / "text"))
    np.savez(path, weights=np.array([{"an": "object"}], dtype=object))  # would need pickle
    with pytest.raises(ValueError, match="neither safetensors nor npz"):
        perceptual.load(path)
