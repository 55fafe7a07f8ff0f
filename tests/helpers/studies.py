"""What the tests of studies share: a small study file, made-up results, and a stand-in for the commands of a run."""

from itit.data.scenes import GROUPS
from tests.helpers.common import ROOT
from tools.studies import study_file

BASE = f"""# A base.
--flagfile={ROOT}/launch/flagfiles/mini/mini.cfg
--num_steps=400
--lr_warmup_steps=40
"""
TEXT = """
# A comment.
[study]
title = Pairs and more
base = {base}
batch = 64
test = 40
seeds = 0, 1
flags = --dropout=0.1

[pairs alone]
about = both directions        # on pairs
paper = FID 15.7, CIDEr 23.5
flags =
    --t2i_batch=50% --i2t_batch=50%
    --t2i2t=off --t2i2t_batch=0
    --i2t2i=off --i2t2i_batch=0

[both cycles]
paper = FID 14.3, CIDEr 31.1; FID 14.1, CIDEr 31.3
pairs = 30, 300
seeds = 5
flags =
    --t2i_batch=25% --i2t_batch=25% --t2i2t_batch=25% --i2t2i_batch=25%
    --t2i2t_warmup_steps=10% --i2t2i_warmup_steps=10%
"""

# In the place of `python -m`: training that prints steps, scoring that writes scores. An experiment with --dropout=0.3
# fails. $COUNT holds one file for each that is at work, so that a test can tell how many there were at once; where
# $TOGETHER is set, the first waits for a second one, which a busy machine may start late.
STUB = """
import json, os, sys, time
module, arguments = sys.argv[1], dict(part.lstrip("-").partition("=")[::2] for part in sys.argv[2:])
mark = os.path.join(os.environ["COUNT"], str(os.getpid()))
open(mark, "w").close()
with open(os.path.join(os.environ["COUNT"], "most"), "a") as file:
    at_work = [name for name in os.listdir(os.environ["COUNT"]) if name.isdigit()]
    print(len(at_work), module, os.environ["OMP_NUM_THREADS"], file=file)
most, deadline = os.path.join(os.environ["COUNT"], "most"), time.monotonic() + 60
while os.environ.get("TOGETHER") and max(int(line.split()[0]) for line in open(most)) < 2:
    if time.monotonic() > deadline:
        break
    time.sleep(0.05)
if module == "itit.train":
    for step in (100, 200, 300, 400):
        print(f"step {step}/400 | 9 steps/s", flush=True)
        time.sleep(float(os.environ.get("SECONDS_A_STEP", "0.05")))
    if arguments["dropout"] == "0.3":
        print("error: the loss is no number", file=sys.stderr)
        sys.exit(2)
else:
    with open(os.environ["SCORES"]) as file:
        found = json.load(file)
    with open(arguments["output"], "w") as file:
        json.dump(found, file)
os.remove(mark)
"""


def write(folder, text=TEXT, name="some"):
    """Writes a study and its base below `folder`, and returns the path."""
    (folder / "base.cfg").write_text(BASE)
    path = folder / f"{name}.study"
    path.write_text(text.format(base=folder / "base.cfg"))
    return str(path)


def read(folder, text=TEXT):
    return study_file.read(write(folder, text))


def scores(captions, pictures):
    """What tools.score_scenes writes, for shares of one, two, three objects that are alike."""

    def direction(share):
        attributes = dict.fromkeys(("shape", "colour", "size", "place"), share)
        return {"exact": share, "by_objects": {"1": share, "2": share / 2, "3": 0.0}, "by_attribute": attributes}

    turns = {kind: [0.8, 0.6, 0.4, 0.2] for kind in ("image", "text")}
    one = {"captions": direction(captions), "pictures": direction(pictures), "CIDEr": 100 * captions, "cycles": turns}
    curves = {"captions_exact": [[200, 400], [captions / 2, captions]], "pictures_exact": [[200, 400], [0.0, pictures]]}
    return {"step": 400, "device": "cpu", "scores": dict.fromkeys(GROUPS, one), "curves": curves}


def line(study, experiment, seed, captions, pictures, minutes=3.0):
    """A line of results."""
    return {
        "study": study.name, "experiment": experiment.name, "seed": seed, "digest": study.digest(experiment, seed),
        "settings": experiment.settings, "data": study.data(experiment), "minutes": minutes, "jobs": 2, "threads": 1,
        "commit": "abc", **scores(captions, pictures),
    }  # fmt: skip
