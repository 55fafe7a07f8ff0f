"""Features of pictures by a network from a file: Inception as FID has it, or any network of `perceptual.py`.

Shapes: B batch, S side of a picture in pixels, K features.
"""

from unittest import mock

import torch

from itit import storage
from tools.convert import pickled
from tools.training import perceptual

try:
    from torch_fidelity import feature_extractor_inceptionv3 as library
except ImportError:
    library = None

# torch-fidelity's weights, converted from TensorFlow's of 2015-12-05; the name of the file holds the SHA-256's begin.
INCEPTION_SHA256 = "6726825d"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class Extractor:
    """uint8 [B, S, S, 3] -> float32 [B, K], on a backend, without gradient.

    Attributes: `name`, of the distance on these features; `stamp`, JSON values that tell one extractor from another.
    """

    def __init__(self, network, function, name, stamp, backend):
        self.network, self.name, self.stamp = backend.adopt(network), name, stamp
        self._function, self._backend = function, backend
        self._run = backend.sampler

    def __call__(self, pictures):
        batch = self._backend.to_device({"pictures": pictures}, whole=True)["pictures"]
        return self._run(self._function, self.network, batch).cpu().float().numpy()


@torch.no_grad()
def _inception(network, pictures):
    return network(pictures.movedim(-1, 1).contiguous())[0]


@torch.no_grad()
def _last(network, pictures):
    """The mean of the last layer over the picture."""
    return network.network(pictures.movedim(-1, 1).float() / 255)[-1].mean((2, 3))


def inception(path, backend, trusted=False):
    """The Inception network of FID, features "2048", from torch-fidelity's weights.

    Args:
      path: its file. It is read for tensors alone, and nothing is fetched; the library's own way would do both.
      trusted: also take other weights, whose distance then is no FID and has another name.

    Raises ValueError, one line: the library is absent, the file is another one, or does not fit.
    """
    if library is None:
        raise ValueError("--inception: needs torch-fidelity: pip install torch-fidelity torchvision")
    sha256 = storage.sha256(path)
    published = sha256.startswith(INCEPTION_SHA256)
    if not published and not trusted:
        raise ValueError(f"{path}: its SHA-256 is {sha256}, that of {INCEPTION_FILE} begins with {INCEPTION_SHA256}; "
                         "--force takes it, but calls no result FID")  # fmt: skip
    tensors = pickled.read(path)
    try:
        with mock.patch.object(library, "load_state_dict_from_url", return_value=tensors):
            network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except RuntimeError as error:
        raise ValueError(f"{path}: not torch-fidelity's Inception: {str(error).splitlines()[1].strip()}") from None
    stamp = {"extractor": "Inception 2015-12-05, torch-fidelity, features 2048, TF1 bilinear to 299", "sha256": sha256}
    return Extractor(network, _inception, "FID" if published else "frechet_other_inception", stamp, backend)


def other(path, backend):
    """A network of `perceptual.py`: the means of its last layer. Raises ValueError as `perceptual.load` does."""
    network = perceptual.load(path)
    kind = type(network.network).__name__.lower()
    stamp = {"extractor": f"{kind}, mean of the last layer", "sha256": storage.sha256(path)}
    return Extractor(network, _last, f"frechet_{kind}", stamp, backend)


def of(inception_path, features_path, backend, force):
    """The Extractor that two flags name. Raises ValueError unless one of them is given."""
    if bool(inception_path) == bool(features_path):
        raise ValueError("give --inception=FILE (torch-fidelity's weights) or --features=FILE, one of the two")
    return inception(inception_path, backend, force) if inception_path else other(features_path, backend)
