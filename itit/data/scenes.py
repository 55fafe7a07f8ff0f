"""Scenes: small pictures of one to three objects, captions of them, and exact readers of both.

A scene is a sorted tuple of `Object`s in different quadrants, so scenes compare with ==. Four functions translate:
`render` scene -> picture, `read` picture -> scene, `describe` scene -> caption, `parse` caption -> scene. With the
two readers, "does the picture show what the prompt says" and "does the caption say what the picture shows" are counted
exactly, without outside weights. Of the 128 possible objects one in eight is in no training data, and another one in
eight in unpaired pictures and texts alone (`group`).

Pictures are uint8 [64, 64, 3]. Shapes here: T templates, P = 32 * 32 pixels of a quadrant.
"""

import re
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (215, 35, 40),
    "green": (40, 150, 60),
    "blue": (45, 85, 215),
    "yellow": (240, 215, 40),
}
SIZES = {"small": 6.5, "large": 12.5}  # half widths in pixels
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUND = (247, 247, 243)
COUNT_PROBABILITIES = (0.5, 0.35, 0.15)  # of one, two, three objects
IMAGE_SIZE, CELL = 64, 32
JITTER = 1  # pixels that an object may be off the centre of its quadrant
GROUPS = ("seen", "unpaired", "never")  # of objects: in all data; not in pairs; in no training data


class Object(NamedTuple):
    shape: str
    colour: str
    size: str
    place: str


OBJECTS = tuple(Object(s, c, z, p) for s in SHAPES for c in COLOURS for z in SIZES for p in PLACES)


def make_scene(objects):
    """Objects in any order -> scene. Raises ValueError for no object, more than three, or two in one place."""
    scene = tuple(sorted(objects))
    if not 1 <= len(scene) <= len(COUNT_PROBABILITIES):
        raise ValueError(f"{len(scene)} objects in a scene: must be 1 to {len(COUNT_PROBABILITIES)}")
    if len({thing.place for thing in scene}) < len(scene):
        raise ValueError(f"objects at {', '.join(thing.place for thing in scene)}: each must have its own place")
    return scene


def group(thing):
    """Which data show an object, one of `GROUPS`.

    For each (shape, colour) one (size, place) is in no training data, and one of the other size, above or below it, in
    unpaired data alone. Both patterns are Latin: of the objects with any two attribute values given, one in eight
    belongs to each.
    """
    shape, colour = SHAPES.index(thing.shape), tuple(COLOURS).index(thing.colour)
    size, place = tuple(SIZES).index(thing.size), PLACES.index(thing.place)
    never_size, never_place = (colour + shape // 2) % 2, (colour + shape) % 4
    if (size, place) == (never_size, never_place):
        return "never"
    if (size, place) == (1 - never_size, (never_place + 2) % 4):
        return "unpaired"
    return "seen"


def group_of(scene):
    """The group of a scene is that of its rarest object: the last in `GROUPS`."""
    return max(map(group, scene), key=GROUPS.index)


def sample(rng, groups):
    """Draws a scene whose group is one of `groups`.

    Args:
      rng: numpy Generator.
      groups: names of `GROUPS`. ("seen",) is the law of pairs, ("seen", "unpaired") that of unpaired data.
    """
    count = 1 + rng.choice(len(COUNT_PROBABILITIES), p=COUNT_PROBABILITIES)
    while True:
        places = rng.permutation(len(PLACES))[:count]
        kinds = rng.integers(len(OBJECTS) // len(PLACES), size=count)
        scene = make_scene(OBJECTS[kind * len(PLACES) + place] for kind, place in zip(kinds, places, strict=True))
        if group_of(scene) in groups:
            return scene


# Pictures


def _coverage(shape, size, dx=0, dy=0):
    """float32 [32, 32]: share of each pixel that the object covers, from 4 x 4 points a pixel."""
    points = (np.arange(4 * CELL) + 0.5) / 4 - CELL / 2
    x, y = np.abs(points[None, :] - dx), points[:, None] - dy
    r = SIZES[size]
    if shape == "circle":
        inside = x**2 + y**2 <= r**2
    elif shape == "square":
        inside = np.maximum(x, np.abs(y)) <= r * 0.9
    elif shape == "triangle":
        inside = (np.abs(y) <= r) & (x <= (y + r) / 2)
    else:
        inside = (np.maximum(x, np.abs(y)) <= r) & (np.minimum(x, np.abs(y)) <= r / 3.2)
    return inside.reshape(CELL, 4, CELL, 4).mean((1, 3), dtype=np.float32)


def _cell(picture, place):
    """View [32, 32, 3] of the quadrant called `place`."""
    row, column = divmod(PLACES.index(place), 2)
    return picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


_SHIFTS = [(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)]  # generated pictures may be a pixel further off
_KINDS = [(shape, size, *shift) for shape in SHAPES for size in SIZES for shift in _SHIFTS]
_BLURS = (0.1, 1.0, 2.0)  # standard deviations in pixels; the first one leaves the edges sharp
_COVERAGE = {kind: _coverage(*kind) for kind in _KINDS}


def render(scene, rng=None):
    """uint8 [64, 64, 3]. Captions do not tell where exactly an object is: `rng` moves each by up to `JITTER` pixels."""
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUND, np.float32)
    for thing in scene:
        dx, dy = (0, 0) if rng is None else rng.integers(-JITTER, JITTER + 1, size=2)
        alpha = _COVERAGE[thing.shape, thing.size, int(dx), int(dy)][..., None]
        cell = _cell(picture, thing.place)
        cell += alpha * (np.array(COLOURS[thing.colour], np.float32) - cell)
    return np.round(picture).astype(np.uint8)


def _blur(coverage, sigma):
    """Gaussian blur of a [32, 32] array."""
    offsets = np.arange(CELL)[:, None] - np.arange(CELL)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights[CELL // 2].sum()).astype(np.float32)
    return weights @ coverage @ weights


# float32 [T, P], each of length 1: least squares of a quadrant against them is one matrix product. Blurred ones stand
# for what comes out of a lossy tokenizer; without them a soft small cross reads as a circle.
_TEMPLATES = np.stack([_blur(coverage, s).ravel() for s in _BLURS for coverage in _COVERAGE.values()])
_NORMS = np.linalg.norm(_TEMPLATES, axis=1)
_TEMPLATES /= _NORMS[:, None]
# What the colour of the best template is compared with; the first one is the empty quadrant.
_PALETTE = np.array([BACKGROUND, *COLOURS.values()], np.float32)


def read(picture):
    """The scene that a picture shows, drawn by `render` or generated; `()` for an empty one.

    In each quadrant every template (shape, size, shift, blur) gets the one colour that explains the quadrant best; the
    template that leaves the least unexplained tells shape and size, the nearest named colour the colour. Four objects
    are a result, too, which no caption describes.

    Args:
      picture: uint8 [64, 64, 3].
    """
    if picture.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"picture of shape {picture.shape}: must be ({IMAGE_SIZE}, {IMAGE_SIZE}, 3)")
    picture = picture.astype(np.float32)
    # No object reaches the rim, so it tells the background even where a lossy tokenizer has shifted all colours.
    rim = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, 0], picture[:, -1]])
    picture -= np.median(rim, axis=0)
    cells = np.stack([_cell(picture, place).reshape(-1, 3) for place in PLACES], axis=1)  # [P, 4, 3]
    amplitudes = (_TEMPLATES @ cells.reshape(CELL * CELL, -1)).reshape(-1, len(PLACES), 3)
    best = (amplitudes**2).sum(-1).argmax(0)  # [4]
    objects = []
    for place, template, amplitude in zip(PLACES, best, amplitudes.swapaxes(0, 1), strict=True):
        colour = amplitude[template] / _NORMS[template] + _PALETTE[0]
        name = ((colour - _PALETTE) ** 2).sum(-1).argmin()
        if name > 0:
            shape, size, *_ = _KINDS[template % len(_KINDS)]
            objects.append(Object(shape, tuple(COLOURS)[name - 1], size, place))
    return tuple(sorted(objects))


# Captions

MAX_WORDS = 31
NOUN_PHRASES = (
    "a {size} {colour} {shape} in the {place}",
    "a {size} {colour} {shape} at the {place}",
    "a {size} {colour} {shape} in the {place} corner",
)
PHRASES = NOUN_PHRASES + (
    "at the {place} there is a {size} {colour} {shape}",
    "in the {place} a {size} {colour} {shape}",
    "the {place} {shape} is {size} and {colour}",
    "{place} : {size} {colour} {shape}",
    "{size} {colour} {shape} {place}",
)
# Whole captions, each with the phrases that read well in it.
FRAMES = (
    ("{objects}", PHRASES),
    ("{objects} on a light ground", PHRASES),
    ("here : {objects}", PHRASES),
    ("{count} : {objects}", PHRASES),
    ("a picture of {count} : {objects}", PHRASES),
    ("a picture of {objects}", NOUN_PHRASES),
    ("a picture with {objects}", NOUN_PHRASES),
    ("this picture shows {objects}", NOUN_PHRASES),
    ("we see {objects}", NOUN_PHRASES),
    ("draw {objects}", NOUN_PHRASES),
)
JOINTS = (" and ", " , ", " with ")
COUNTS = ("one object", "two objects", "three objects")
WORDS = frozenset(
    word
    for text in (*PHRASES, *(frame for frame, _ in FRAMES), *JOINTS, *COUNTS, *SHAPES, *COLOURS, *SIZES, *PLACES)
    for word in text.split()
    if "{" not in word
)


def describe(scene, rng):
    """A caption of at most `MAX_WORDS` words, all of `WORDS`, with frame, phrases, joints and order drawn by `rng`."""
    while True:
        frame, phrases = FRAMES[rng.integers(len(FRAMES))]
        text = ""
        for index in rng.permutation(len(scene)):
            joint = JOINTS[rng.integers(len(JOINTS))] if text else ""
            text += joint + phrases[rng.integers(len(phrases))].format(**scene[index]._asdict())
        text = frame.format(objects=text, count=COUNTS[len(scene) - 1])
        if len(text.split()) <= MAX_WORDS:
            return text


def _patterns():
    """From the tables above: the pattern of one object with named groups; for each frame, that of a whole caption."""
    values = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}
    slots = {name: f"(?:{'|'.join(choices)})" for name, choices in values.items()}
    named = [re.sub(r"{(\w+)}", rf"(?P<\g<1>_{k}>{{\g<1>}})", text).format(**slots) for k, text in enumerate(PHRASES)]
    phrase = f"(?:{'|'.join(text.format(**slots) for text in PHRASES)})"
    objects = f"(?P<objects>{phrase}(?:(?:{'|'.join(JOINTS)}){phrase})*)"
    # A group name may occur once in a pattern, so each frame is a pattern of its own.
    frames = [re.compile(frame.format(objects=objects, count=f"(?P<count>{'|'.join(COUNTS)})")) for frame, _ in FRAMES]
    return re.compile("|".join(named)), frames


_OBJECT, _FRAMES = _patterns()


def parse(caption):
    """The scene that a caption describes, or None where it is not of the grammar or contradicts itself.

    Upper case and the spaces around "," and ":" do not matter. Two objects in one place, or a wrong number of objects,
    are a contradiction.
    """
    caption = " ".join(re.sub(r"([,:])", r" \1 ", caption.lower()).split())
    match = next(filter(None, (frame.fullmatch(caption) for frame in _FRAMES)), None)
    if match is None:
        return None
    objects = []
    for found in _OBJECT.finditer(match["objects"]):
        objects.append(Object(**{name.split("_")[0]: text for name, text in found.groupdict().items() if text}))
    try:
        scene = make_scene(objects)
    except ValueError:
        return None
    count = match.groupdict().get("count")
    return scene if count in (None, COUNTS[len(scene) - 1]) else None
