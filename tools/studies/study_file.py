"""A study: a plain-text file of experiments, each a flagfile with a few changes, some data and some seeds.

    [study]                                      # what all experiments share; each may say otherwise
    title = Table 2: ways of using the data
    base = launch/flagfiles/mini/mini.cfg
    batch = 80
    pairs = 300
    images = 20000
    texts = 20000

    [row 3]                                      # the name of an experiment
    about = both directions on pairs
    paper = FID 15.7, CIDEr 23.5
    seeds = 0, 1, 2
    flags = --t2i_batch=50% --i2t_batch=50% --t2i2t=off --t2i2t_batch=0 --i2t2i=off --i2t2i_batch=0

The tables below say what each key means. A mistake is a ValueError, one line that names file, section and what is
allowed.
"""

import configparser
import difflib
import os
import re

from itit import flags
from itit.data import scenes
from itit.tasks import STREAMS, batches, of_stream
from tools.studies.experiments import AMOUNTS, OWN, Experiment, Study, flags_of

SETTINGS = "study"
# Key -> what it means. Those of STUDY_ONLY stand in [study], those of ONE_ONLY in an experiment, the others in both.
STUDY_ONLY = {
    "title": "heading of the report",
    "base": "flagfile that all experiments begin with",
    "batch": "samples a step: what per cents of a flag that ends in _batch are taken of",
    "test": "test scenes of each split",
    "data_seed": "seed of unpaired data and test scenes; pairs are drawn by the seed of the run",
    "vqgan": "flagfile of the image tokenizer",
    "eval": "test split of the evaluation while training: " + ", ".join(scenes.GROUPS),
    "plot": "bars, one an experiment; lines, over x; none",
    "x": "of lines: pairs, images, texts, extra, total (of these), or a flag",
    "log_x": "yes or no",
    "x_label": "of lines",
}
ONE_ONLY = {"paper": "the paper's numbers: FID 15.7, CIDEr 23.5; of several experiments with ; between them"}
BOTH = {
    "about": "a few words",
    "flags": "changes of the base; N% of a batch or, where a flag ends in _steps, of num_steps",
    "seeds": "of the run; also says which pairs are drawn",
    "series": "of lines: experiments of one name are joined; by default the section's name",
    "pairs": "pairs of objects of the group seen",
    "images": "unpaired pictures; pairs: the pictures of the pairs",
    "texts": "unpaired texts; pairs: the texts of the pairs",
    "extra": "pairs more, of all that unpaired data show",
    "wrong_captions": "share of the extra pairs with the caption of another scene",
}
LISTS = (*AMOUNTS, "wrong_captions")  # several values are as many experiments
DEFAULTS = {"batch": "0", "test": "500", "data_seed": "0", "vqgan": "launch/flagfiles/quickstart_vqgan.cfg",
            "eval": "never", "plot": "bars", "x": "pairs", "log_x": "no", "x_label": "", "about": "", "flags": "",
            "seeds": "0", "series": "", "pairs": "300", "images": "20000", "texts": "20000", "extra": "0",
            "wrong_captions": "0"}  # fmt: skip
PLACEHOLDERS = ("--vocabulary=later", "--vqgan=later")  # for what is checked beside them
PLOTS = ("bars", "lines", "none")


def find(name, folder="launch/flagfiles/mini"):
    """The path of a study: itself, or its name in the folder. Raises ValueError with those that are there."""
    path = name if name.endswith(".study") or os.sep in name else os.path.join(folder, f"{name}.study")
    if not os.path.isfile(path):
        listed = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        known = [entry.removesuffix(".study") for entry in listed if entry.endswith(".study")]
        raise ValueError(f"{path}: no such study; {folder} has {', '.join(known) or 'none'}")
    return path


def read(path):
    """The `Study` of a file. Raises ValueError, one line."""
    parser = configparser.ConfigParser(
        default_section="\0", delimiters=("=",), comment_prefixes=("#",), inline_comment_prefixes=("#",),
        interpolation=None, empty_lines_in_values=False,
    )  # fmt: skip
    parser.optionxform = str
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {_first_line(error)}") from None
    place = f"{path}: [{SETTINGS}]"
    if SETTINGS not in parser:
        raise ValueError(f"{place}: not there; it holds {', '.join(STUDY_ONLY | BOTH)}")
    shared = dict(parser[SETTINGS])
    _check_keys(shared, STUDY_ONLY | BOTH, place)
    for key in ("title", "base"):
        if not shared.get(key):
            raise ValueError(f"{place}: {key} is missing: {STUDY_ONLY[key]}")
    whole = DEFAULTS | shared
    for key in ("base", "vqgan"):
        if not os.path.isfile(whole[key]):
            raise ValueError(f"{place}: {key} = {whole[key]}: no such file; paths begin at the root of the repository")
    experiments = []
    for section in parser.sections():
        if section != SETTINGS:
            own = dict(parser[section])
            _check_keys(own, ONE_ONLY | BOTH, f"{path}: [{section}]")
            experiments += _expand(section, whole, own, f"{path}: [{section}]")
    if not experiments:
        raise ValueError(f"{path}: no experiment: a section of its own for each")
    names = [experiment.name for experiment in experiments]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: two experiments are called {name!r}")
    x = whole["x"]
    known = (*AMOUNTS, "total", *dict(flags_of(experiments[0].config)))
    study = Study(
        name=os.path.basename(path).removesuffix(".study"), path=path, title=" ".join(whole["title"].split()),
        about=" ".join(whole["about"].split()), base=whole["base"], test=_whole("test", whole["test"], place, 1),
        data_seed=_whole("data_seed", whole["data_seed"], place), vqgan=whole["vqgan"],
        eval=_choice("eval", whole["eval"], scenes.GROUPS, place), plot=_choice("plot", whole["plot"], PLOTS, place),
        x=_choice("x", x, known, place), log_x=_choice("log_x", whole["log_x"], ("yes", "no"), place) == "yes",
        x_label=whole["x_label"] or x.replace("_", " "), experiments=tuple(experiments),
    )  # fmt: skip
    if study.log_x and min(map(study.x_of, study.experiments)) <= 0:
        raise ValueError(f"{place}: log_x = yes: {x} must be above 0 in every experiment")
    return study


def _expand(section, whole, own, place):
    """The experiments of a section: one, or as many as its amounts have values."""
    given = {key: value for key, value in whole.items() if key not in ("about", "flags", "series")} | own
    lists = {key: [part.strip() for part in given[key].split(",")] for key in LISTS}
    lengths = {key: len(parts) for key, parts in lists.items() if len(parts) > 1}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{place}: {' and '.join(f'{k} has {n} values' for k, n in lengths.items())}: must be equal")
    count = max(lengths.values(), default=1)
    papers = own.get("paper", ";" * (count - 1)).split(";")
    if len(papers) != count:
        raise ValueError(f"{place}: paper = {own['paper']}: must be for {count} experiments, separated by ;")
    for number in range(count):
        values = {key: parts[number if len(parts) > 1 else 0] for key, parts in lists.items()}
        suffix = "".join(f", {key} {values[key]}" for key in lengths)
        yield _experiment(section, section + suffix, whole, own | {"paper": papers[number]}, given, values, place)


def _experiment(section, name, whole, own, given, values, place):
    batch = _whole("batch", whole["batch"], place)
    changes = f"{whole['flags']} {own.get('flags', '')}".split()
    arguments = tuple(_shares(changes, batch, whole["base"], place))
    for argument in arguments:
        flag = re.sub("^--(no)?", "", argument.partition("=")[0])
        if flag in OWN or not argument.startswith("--"):
            raise ValueError(f"{place}: flags: {argument}: " + ("the study sets it" if flag in OWN else "no --flag"))
    try:
        config = flags.from_flagfile(whole["base"], (*arguments, *PLACEHOLDERS))
    except ValueError as error:
        raise ValueError(f"{place}: flags: {str(error).removeprefix(whole['base'] + ': ')}") from None
    seeds = tuple(_whole("seeds", part, place) for part in given["seeds"].split(","))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{place}: seeds = {given['seeds']}: each once")
    return Experiment(
        name=name, about=" ".join(own.get("about", "").split()), paper=_paper(own.get("paper", ""), place),
        series=own.get("series") or whole["series"] or section, seeds=seeds, values=_used(values, config, place),
        flags=arguments, config=config,
    )  # fmt: skip


def _used(values, config, place):
    """Amount -> number or "pairs", of the data that the tasks of a step take."""
    sizes, found = batches(config.objective), {}
    needs = {stream: [f"{task}_batch" for task in of_stream(stream) if sizes[task]] for stream in STREAMS}
    if needs["paired_data"]:
        found["pairs"] = _whole("pairs", values["pairs"], place)
        extra = _whole("extra", values["extra"], place)
        if extra:
            share = _share("wrong_captions", values["wrong_captions"], place)
            found |= {"extra": extra, "wrong_captions": share}
        if found["pairs"] + extra < 1:
            raise ValueError(f"{place}: pairs = 0: {' and '.join(needs['paired_data'])} need some")
    for name, stream in (("images", "image_data"), ("texts", "text_data")):
        if needs[stream]:
            found[name] = "pairs" if values[name] == "pairs" else _whole(name, values[name], place)
            if found[name] == 0 or (found[name] == "pairs" and not found.get("pairs")):
                raise ValueError(f"{place}: {name} = {values[name]}: {needs[stream][0]} needs some")
    return found


def _shares(changes, batch, base, place):
    """Flags with per cents as numbers."""
    whole_steps = [part.partition("=")[2] for part in changes if part.startswith("--num_steps=")]
    steps = None
    for change in changes:
        found = re.fullmatch(r"--(\w+)=([0-9.]+)%", change)
        if not found:
            yield change
            continue
        name, share = found[1], float(found[2]) / 100
        if name.endswith("_batch"):
            if not batch or abs(batch * share - round(batch * share)) > 1e-6:
                raise ValueError(f"{place}: flags: {change}: must be a whole number of batch = {batch}")
            yield f"--{name}={round(batch * share)}"
        elif name.endswith("_steps") and name != "num_steps":
            if steps is None:
                steps = _whole("num_steps", whole_steps[-1], place) if whole_steps else (
                    flags.from_flagfile(base, PLACEHOLDERS).optim.num_steps)  # fmt: skip
            yield f"--{name}={round(steps * share)}"
        else:
            raise ValueError(f"{place}: flags: {change}: per cents are for flags that end in _batch or _steps")


def _paper(text, place):
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\S.*?)\s+(-?[0-9]+(?:\.[0-9]+)?)", part)
        if not match:
            raise ValueError(f"{place}: paper = {text}: must be a name and a number, separated by commas: FID 15.7")
        found[match[1]] = float(match[2])
    return found


def _check_keys(given, known, place):
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{place}: unknown key {key!r}; allowed: {', '.join(known)}{hint}")


def _choice(key, value, allowed, place):
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1)
        listed = ", ".join(allowed) if len(allowed) < 10 else f"{', '.join(allowed[:5])} or a flag"
        raise ValueError(f"{place}: {key} = {value}: must be {listed}" + (f"; did you mean {near[0]}?" if near else ""))
    return value


def _whole(key, text, place, least=0):
    if not text.strip().isdigit() or int(text) < least:
        raise ValueError(f"{place}: {key} = {text}: must be a whole number from {least} on")
    return int(text)


def _share(key, text, place):
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or float(text) > 1:
        raise ValueError(f"{place}: {key} = {text}: must be a number from 0 to 1")
    return float(text)


def _first_line(error):
    return " ".join(str(error).split())
