"""Gaussian statistics of features, gathered batch by batch, and the Frechet distance between two of them.

Shapes: B batch, K features.
"""

import io
import json

import numpy as np

from itit import storage


class Moments:
    """Mean and covariance of all rows given to `add`, in float64 whatever comes in; no row is kept.

    `stamp`: JSON values that say of what these are the statistics.
    """

    def __init__(self, stamp=None):
        self.count, self.stamp = 0, stamp or {}
        self.mean = self._scatter = None

    def add(self, rows):
        """float [B, K], B at least 1. The means of the parts are joined, so that large means cost no digits."""
        rows = np.asarray(rows, np.float64)
        mean, count = rows.mean(0), len(rows)
        centred = rows - mean
        if self.mean is None:
            self.mean, self._scatter = np.zeros_like(mean), np.zeros((len(mean), len(mean)))
        shift, total = mean - self.mean, self.count + count
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self):
        """float64 [K, K], of a sample: over count - 1. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"{self.count} pictures: a covariance needs at least 2")
        return self._scatter / (self.count - 1)


def distance(a, b):
    """Squared Frechet distance (Wasserstein-2) between two Gaussians: |m - n|^2 + tr(C + D - 2 (C^1/2 D C^1/2)^1/2).

    The symmetric form needs eigenvalues of symmetric matrices alone, which rounding cannot make complex.

    Args:
      a, b: `Moments` or `Known`, of as many features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared")
    root = _root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    roots = np.sqrt(np.maximum(cross, 0)).sum()
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots)


def _root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def write(path, moments):
    """Writes an npz: `mu`, `sigma` (the names that other FID tools use), `count`, `stamp` (JSON)."""
    with storage.writer(path) as file:
        np.savez(file, mu=moments.mean, sigma=moments.covariance, count=moments.count, stamp=json.dumps(moments.stamp))


def read(path):
    """`Known` of an npz. Others' files, of `mu` and `sigma` alone, come with an empty stamp and a count of 0.

    Raises ValueError, one line, where it is no such file.
    """
    data = storage.read_bytes(path)
    try:
        with np.load(io.BytesIO(data)) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
        count, stamp = int(found.get("count", 0)), json.loads(str(found.get("stamp", "{}")))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not statistics of features (npz of mu and sigma): {error!r}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu is {mean.shape}, sigma {covariance.shape}: must be (K,) and (K, K)")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f"{path}: holds NaN or infinity")
    return Known(mean, covariance, count, stamp)


class Known:
    """Statistics that were gathered elsewhere: what `Moments` gives, of which the count may be unknown, 0."""

    def __init__(self, mean, covariance, count, stamp):
        self.mean, self.covariance, self.count, self.stamp = mean, covariance, count, stamp
