"""Distances between two sets of pictures, with a stamp that says between what and how.

Shapes: B batch, S side of a picture in pixels, K features.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import tqdm

from itit import storage
from tools.data.damaged import Damage
from tools.generation import inputs
from tools.scoring import frechet

try:
    from torch_fidelity import metric_kid, metric_prc
except ImportError:
    metric_kid = metric_prc = None

MIN_PICTURES = (
    2048  # the number of Inception's features: below, their covariance is singular and the distance too large
)
KID_SUBSET = 1000
DECODERS = 4  # threads
FILTER = "bicubic, antialiased (Pillow)"


def measure(source, extractor, image_size=0, batch_size=32, keep=False, damage=None):
    """Statistics of the features of pictures.

    Args:
      source: folder, patterns of pictures or of TFRecord shards, or an .npz of statistics.
      extractor: `picture_features.Extractor`.
      image_size: S: the short side is resized to it and the centre cut out; 0: pictures as they are, all of one size.
      keep: also return the features, for KID and precision.
      damage: `Damage`: damaged pictures are left out up to its limit, and the stamp says how many; None: none may be.

    Returns:
      (`Moments` or `Known`, float32 [pictures, K] or None).

    Raises ValueError, one line: nothing there, a damaged picture or one of another size, statistics of other features.
    """
    if source.endswith(".npz"):
        moments = frechet.read(source)
        if keep:
            raise ValueError(f"{source}: KID and precision need the pictures, not their statistics")
        found = {name: moments.stamp[name] for name in extractor.stamp if name in moments.stamp}
        if found and found != extractor.stamp:
            raise ValueError(f"{source}: statistics by {found}, asked for are {extractor.stamp}")
        moments.stamp = moments.stamp | {"statistics_sha256": storage.sha256(source)}
        return moments, None
    damage = damage or Damage(0, "pictures")
    before, pictures = damage.count, inputs.find(source, damage.add)
    moments, rows, digest = frechet.Moments(), [], hashlib.sha256()
    with ThreadPoolExecutor(DECODERS) as pool, tqdm.tqdm(total=len(pictures), unit=" pictures", leave=False) as bar:
        for batch in _batches(pictures, batch_size, pool, image_size, damage):
            digest.update(batch.tobytes())
            features = extractor(_filled(batch, batch_size))[: len(batch)]
            if not np.isfinite(features).all():
                raise ValueError(f"{source}: features with NaN or infinity; are the weights whole?")
            moments.add(features)
            if keep:
                rows.append(features)
            bar.update(len(batch))
    if not moments.count:
        raise ValueError(f"{source}: no usable pictures, {damage.count - before} are damaged")
    moments.stamp = (
        extractor.stamp
        | {
            "pictures_sha256": digest.hexdigest(),
            "resize": f"{image_size} pixels, {FILTER}" if image_size else "none",
            "crop": "centre square" if image_size else "none",
            "side": batch.shape[1],
        }
        | ({"damaged": damage.count - before} if damage.count > before else {})
    )
    return moments, np.concatenate(rows) if keep else None


def _filled(batch, size):
    """Every batch has the same shape, so that XLA compiles once."""
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])


def _batches(pictures, batch_size, pool, image_size, damage):
    """Yields uint8 [B, S, S, 3], without damaged ones; the next batch is decoded meanwhile."""
    parts = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    ahead, side = None, image_size
    for part in [*parts, None]:
        waiting, ahead = ahead, part and [(picture, pool.submit(_pixels, picture, image_size)) for picture in part]
        pixels = [(picture, found) for picture, found in _sound(waiting or (), damage)]
        for picture, found in pixels:
            side = side or len(found)
            if len(found) != side:
                raise ValueError(f"{picture.name}: {len(found)} pixels wide, others {side}; give --image_size")
        if pixels:
            yield np.stack([found for _, found in pixels])


def _sound(waiting, damage):
    """Yields (picture, pixels) of those that could be read."""
    for picture, future in waiting:
        try:
            yield picture, future.result()
        except inputs.BadPicture as error:
            damage.add(error)


def _pixels(picture, image_size):
    """uint8 [S, S, 3], as `inputs.load`; without a size only of what is square."""
    if image_size:
        return inputs.load(picture, image_size)
    width, height = inputs.size(picture)
    if width != height:
        raise ValueError(f"{picture.name}: {width} x {height} pixels is no square; give --image_size")
    return inputs.load(picture, width)


def too_few(force, **counts):
    """Whether any of these counts of pictures (0: unknown) is below MIN_PICTURES. Raises ValueError, one line, where it
    is, unless `force`."""
    few = {name: count for name, count in counts.items() if 0 < count < MIN_PICTURES}
    if few and not force:
        name, count = next(iter(few.items()))
        raise ValueError(f"{count} pictures ({name}): below {MIN_PICTURES} the distance is mostly bias; --force gives "
                         "it all the same, and marks it")  # fmt: skip
    return bool(few)


def compare(made, reference, extractor, kid=False, precision_recall=False, force=False):
    """The distance and its stamp: JSON values.

    Args:
      made, reference: what `measure` returned; of the pictures, and of what they are held against.
      force: also below MIN_PICTURES; the result is marked.

    Raises ValueError, one line, for too few pictures, or pictures that were prepared in different ways.
    """
    counts = {"made": made[0].count, "reference": reference[0].count}
    few = too_few(force, **counts)
    for name in ("resize", "crop"):
        pair = [stats.stamp.get(name) for stats, _ in (made, reference)]
        if None not in pair and pair[0] != pair[1] and not force:
            raise ValueError(f"{name}: {pair[0]} for the pictures, {pair[1]} for the reference: must be the same")
    if (kid or precision_recall) and metric_kid is None:
        raise ValueError("--kid, --precision_recall: need torch-fidelity: pip install torch-fidelity torchvision")
    result = {extractor.name: frechet.distance(made[0], reference[0])}
    if kid:
        result |= _kid(made[1], reference[1])
    if precision_recall:
        result |= _precision_recall(made[1], reference[1])
    return result | {
        "num_pictures": counts["made"],
        "num_reference": counts["reference"] or "unknown",
        "too_few_pictures": few,
        "made": made[0].stamp,
        "reference": reference[0].stamp or "unknown",
    }


def _kid(made, reference):
    """Kernel distance (arXiv:1801.01401) by the library, cubic kernel, 100 subsets."""
    size = min(KID_SUBSET, len(made), len(reference))
    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(made), torch.from_numpy(reference), kid_subsets=100, kid_subset_size=size, kid_kernel="poly",
        kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=2020, verbose=False,
    )  # fmt: skip
    return {"KID": found[metric_kid.KEY_METRIC_KID_MEAN], "KID_std": found[metric_kid.KEY_METRIC_KID_STD],
            "KID_subset": size}  # fmt: skip


def _precision_recall(made, reference):
    """Of manifolds of 3 neighbours (arXiv:1904.06991), by the library."""
    found = metric_prc.prc_features_to_metric(
        torch.from_numpy(made), torch.from_numpy(reference), prc_neighborhood=3, prc_batch_size=10000,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    return {"precision": found[metric_prc.KEY_METRIC_PRECISION], "recall": found[metric_prc.KEY_METRIC_RECALL]}


def line(result):
    """The numbers of a result for a person, with what marks them."""
    numbers = [f"{name} {value:.4f}" for name, value in result.items() if isinstance(value, float)]
    marked = " (TOO FEW PICTURES: compare with nothing)" if result["too_few_pictures"] else ""
    damaged = sum(part.get("damaged", 0) for part in (result["made"], result["reference"]) if isinstance(part, dict))
    marked = (f", {damaged} damaged left out" if damaged else "") + marked
    return f"{', '.join(numbers)}; {result['num_pictures']} pictures, {result['num_reference']} of reference{marked}"
