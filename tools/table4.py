"""`python -m tools.table4 --run=runs/table4`: fills predictions into launch/PREDICTIONS.md: table 4 and others.

Reads what `tools.preflight` wrote as JSON: `rowNN.json` of the rows of table 4, beside the paper's, where rows that are
not there stay empty; and every other one, such as `itit_L.json`, as a line of the second table. See launch/table4.sh
and launch/preflight.sh.
"""

import json
import pathlib

from absl import flags as absl_flags

from itit import flags

TABLE_4, OTHERS = "table 4", "other flagfiles"  # as the marks in the document name them
# arXiv:2310.03734, table 4: text-image-text cycle, image-text-image cycle, steps/s.
ROWS = (("no", "no", 3.41), ("half", "no", 2.41), ("no", "half", 2.19), ("half", "half", 1.64), ("full", "no", 2.25),
        ("no", "full", 2.05), ("full", "full", 1.47))  # fmt: skip
PREDICTED = ("predicted: steps/s, links hidden", "links not hidden", "of row 1", "ms by the compiler's cycles",
             "ms of links, estimated", "HBM a chip, GiB", "MFU")  # fmt: skip
HEAD = ("row", "t2i2t", "i2t2i", "paper: steps/s", "of row 1", *PREDICTED)
HEAD_OF_OTHERS = ("flagfile", "chips", "samples a step", *(name for name in PREDICTED if name != "of row 1"))


def read(run):
    """(row number -> prediction, of the rows of table 4 that are there; name of another flagfile -> prediction)."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(run).glob("*.json"))}
    rows = {number: found.pop(f"row{number:02d}") for number in range(1, len(ROWS) + 1) if f"row{number:02d}" in found}
    return rows, found


def table(results):
    """Lines of Markdown. `results`: row number -> prediction."""
    rows = [[str(number), first, second, f"{paper:.2f}", f"{paper / ROWS[0][2]:.2f}",
             *_predicted(results.get(number), results.get(1))]
            for number, (first, second, paper) in enumerate(ROWS, 1)]  # fmt: skip
    return _lines(HEAD, rows)


def table_of_others(results):
    """The same for other flagfiles. `results`: name -> prediction; what follows a "-" only tells two apart."""
    skipped = PREDICTED.index("of row 1")
    rows = []
    for name, result in results.items():
        cells = _predicted(result, None)
        rows.append([name.partition("-")[0].replace("table2_", "table2/") + ".cfg", str(result["chips"]),
                     str(result["samples_per_step"]), *cells[:skipped], *cells[skipped + 1 :]])  # fmt: skip
    return _lines(HEAD_OF_OTHERS, rows)


def _lines(head, rows):
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def _predicted(result, base):
    width = len(PREDICTED)
    if result is None:
        return ["-"] * width
    if not result["compiles"]:
        return ["does not compile"] + ["-"] * (width - 1)
    speed = result["predicted_steps_per_s"]
    relative = f"{speed / base['predicted_steps_per_s']:.2f}" if base and base["compiles"] else "-"
    step, links = result["predicted_step_ms"], result["predicted_ici_ms"]
    memory = f"{result['hbm_gib_per_chip']:.1f} of {result['hbm_gib_limit']:g}"
    return [f"{1e3 / step:.2f}", f"{speed:.2f}", relative, f"{step:.0f}", f"{links:.0f}", memory,
            f"{100 * result['mfu']:.0f} %"]  # fmt: skip


def marks(name):
    return f"<!-- {name} begins -->", f"<!-- {name} ends -->"


def fill(text, name, lines, place):
    """`text` with what stands between the two marks replaced. Raises ValueError where they are not there."""
    first, last = marks(name)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{place}: no {last if begin else first} in it")
    return "\n".join([before + begin, *lines, end + after])


def main(_):
    given = absl_flags.FLAGS
    rows, others = read(given.run)
    if not rows and not others:
        raise ValueError(f"--run={given.run}: no JSON of tools.preflight in it; bash launch/table4.sh makes them")
    path = pathlib.Path(given.readme)
    text = path.read_text()
    if rows:
        text = fill(text, TABLE_4, table(rows), path)
    if others:
        text = fill(text, OTHERS, table_of_others(others), path)
    path.write_text(text)
    print(f"{len(rows)} of {len(ROWS)} rows of table 4 and {len(others)} other flagfiles written into {path}")


if __name__ == "__main__":
    absl_flags.DEFINE_string("run", "runs/table4", "Folder of the rows' JSON.")
    absl_flags.DEFINE_string("readme", "launch/PREDICTIONS.md", "File with the marks.")
    flags.run_main(main)
