"""Settings that follow from how much of everything there is. Why: launch/SETTINGS.md, "Choosing the settings"."""

from itit.tasks import STREAMS, of_stream, off

MANY = 3000  # pairs from which on the cycles get the smaller share
# Samples a step: few pairs lean on the cycles, and pictures, the slower direction, get the larger one.
FEW_PAIRS = {"t2i": 16, "i2t": 16, "t2i2t": 12, "i2t2i": 24}
MANY_PAIRS = {"t2i": 24, "i2t": 24, "t2i2t": 6, "i2t2i": 12}
TIMES_SEEN = 20  # of each pair before the cycles join; over-fitting begins about then
LEAST_WARMUP = 100  # steps: a model that knows nothing makes nothing to learn from
LATEST = 4  # they join after this part of the steps at the latest
UNPAIRED = {"t2i2t": "unpaired texts", "i2t2i": "unpaired pictures"}


def choose(counts, num_steps):
    """What to train with.

    Args:
      counts: records of "paired", "images" and "texts".
      num_steps: of the whole run.

    Returns:
      ({flag: value} for itit.train, list of lines for a person).
    """
    sizes = FEW_PAIRS if counts["paired"] < MANY else MANY_PAIRS
    there = {"paired_data": counts["paired"], "text_data": counts["texts"], "image_data": counts["images"]}
    joins = max(LEAST_WARMUP, TIMES_SEEN * counts["paired"] // sizes["i2t"])
    joins = max(1, min(joins, num_steps // LATEST))
    flags, said = {"lr_warmup_steps": min(50, num_steps // 10)}, []
    for name, size in sizes.items():
        stream = next(stream for stream in STREAMS if name in of_stream(stream))
        if not there[stream]:
            flags |= off(name)
            said.append(f"no {UNPAIRED[name]}: the {name} cycle is off")
            continue
        flags[f"{name}_batch"] = size if stream == "paired_data" else min(size, there[stream])
        if name in UNPAIRED:
            flags[f"{name}_warmup_steps"] = joins
            said.append(f"{there[stream]} {UNPAIRED[name]}: the {name} cycle joins at step {joins}")
    return flags, said
