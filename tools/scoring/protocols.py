"""The paper's evaluations on COCO: which captions and pictures, in what order, and what is written down.

Captions: the pictures of Karpathy's test list (5,000), beam search, CIDEr against all their captions. Pictures: 30,000
prompts, one random caption of each of as many images, drawn once for all by a seed; FID against real pictures. The
usual set is val2014; the paper says the training set (sec. 4.1), so train2014 is a split, too; the label says which.
"""

import contextlib
import hashlib
import os
import re

from itit.scores import captions as captions_lib
from tools.data import coco_json
from tools.data.sources import lines
from tools.generation import generation, inputs
from tools.scoring import fid

NUM_TEST, NUM_PROMPTS = 5000, 30_000
CAPTIONS, FID = ("coco_zero_shot", "coco_finetuned"), "coco_fid30k"


def read_list(path):
    """Image ids of one of Karpathy's lists: "val2014/COCO_val2014_000000253964.jpg 253964" a line."""
    ids = [re.fullmatch(r".*\S\s+(\d+)", line) for _, line in lines.read(path)]
    if not ids or not all(ids):
        raise ValueError(f"{path}: not a list of images (a file name and a number a line)")
    return [int(found[1]) for found in ids]


def split_of(path, given=""):
    """Which split of COCO a json of captions is of: as the names of its pictures say (COCO_val2014_...jpg), or its own
    (captions_val2017.json), or as given; "unknown" where nothing tells.

    Raises ValueError where another one is given.
    """
    files = {}
    with contextlib.suppress(ValueError):  # captions alone
        files = coco_json.file_names(path)
    matches = [re.match(r"COCO_([a-z]+\d+)_", os.path.basename(name)) for name in files.values()]
    found = sorted({match[1] for match in matches if match})
    own = re.search(r"(?:train|val|test)20\d\d", os.path.basename(path))
    found = "+".join(found) or (own[0] if own else "")
    if given and found and given != found:
        raise ValueError(f"--split={given}: {path} is of {found}")
    return given or found or "unknown"


def choose_prompts(path, count=NUM_PROMPTS, seed=0):
    """list of `inputs.Prompt`: `count` images by chance, of each a caption by chance.

    Both are ordered by SHA-256 of the seed and COCO's numbers: the same list whatever the order of the file, the
    machine or the library.

    Raises ValueError where the file has too few images.
    """
    annotations = {}
    for number, entry in enumerate(coco_json.annotations(path)):
        if "id" not in entry:
            raise ValueError(f"{path}: annotation {number}: needs 'id', which the choice of captions goes by")
        annotations.setdefault(entry["image_id"], []).append((_place(seed, "caption", entry["id"]), entry["caption"]))
    if len(annotations) < count:
        raise ValueError(f"{path}: captions of {len(annotations)} images, --num_prompts={count}")
    images = sorted(annotations, key=lambda image_id: _place(seed, "image", image_id))[:count]
    return [inputs.Prompt(min(annotations[image_id])[1].strip(), image_id) for image_id in images]


def _place(seed, kind, number):
    return hashlib.sha256(f"{seed}/{kind}/{number}".encode()).hexdigest()


def choose_pictures(folder, wanted, partial):
    """(list of `inputs.Picture` of the wanted image ids in their order, how many of these are not there).

    Raises ValueError where one is not there, unless `partial`.
    """
    there = {picture.image_id: picture for picture in inputs.find(folder)}
    absent = [image_id for image_id in wanted if image_id not in there]
    if absent and (not partial or len(absent) == len(wanted)):
        raise ValueError(f"{folder}: no picture of image {absent[0]}, of {len(absent)} in all; --force goes without")
    return [there[image_id] for image_id in wanted if image_id in there], len(absent)


def evaluate_captions(model, captions, image_list, images, output, telling, batch_size, sharing, force):
    """Result as JSON values, or None while other hosts are not done.

    Args:
      captions: COCO's json with the references. image_list: Karpathy's list, or "" for all of them, with `force`.
      images: folder of the pictures. output: folder of the export (see `generation.export_captions`).
    """
    references = coco_json.read_references(captions)
    if not image_list and not force:
        raise ValueError("--image_list is empty: give Karpathy's list of test images; --force takes all")
    wanted = read_list(image_list) if image_list else list(references)
    unknown = [image_id for image_id in wanted if image_id not in references]
    if unknown and not force:
        raise ValueError(
            f"{captions}: no caption of image {unknown[0]}, of {len(unknown)} in all; --force goes without"
        )
    pictures, absent = choose_pictures(images, [i for i in wanted if i in references], force)
    if not generation.export_captions(model, pictures, output, telling, batch_size, sharing):
        return None
    told = coco_json.read_results(f"{output}/captions.json")
    texts, truth = list(told.values()), [references[image_id] for image_id in told]
    return captions_lib.score(texts, truth) | {
        "statistics": captions_lib.statistics(texts),
        "whole": len(told) == NUM_TEST and not absent and not unknown,
        "list_sha256": generation.digest(wanted),
    }


def evaluate_pictures(model, prompts, reference, extractor, output, drawing, batch_size, sharing, force):
    """Result as JSON values, or None while other hosts are not done.

    Args:
      prompts: of `choose_prompts`. reference: real pictures, or their statistics (see `fid.measure`).
    """
    if not reference.endswith(".npz"):
        fid.too_few(force, reference=len(inputs.find(reference)))
    if not generation.export_pictures(model, prompts, output, drawing, batch_size, sharing):
        return None
    size = model.picture_size
    made = fid.measure(f"{output}/pictures", extractor, size, batch_size)
    real = fid.measure(reference, extractor, size, batch_size)
    whole = len(prompts) == NUM_PROMPTS
    return fid.compare(made, real, extractor, force=force) | {"whole": whole, "list_sha256": generation.digest(prompts)}


def row(protocol, split, result):
    """One line for a table."""
    if protocol in CAPTIONS:
        found = f"CIDEr {100 * result['CIDEr']:.1f} | Bleu_4 {100 * result['Bleu_4']:.1f} | ROUGE_L " \
                f"{100 * result['ROUGE_L']:.1f} | {result['num_images']} images"  # fmt: skip
    else:
        found = fid.line(result)
    marked = "" if result["whole"] else " | NOT THE WHOLE PROTOCOL"
    return f"| {protocol} | {split} | {found}{marked} |"
