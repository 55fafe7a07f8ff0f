"""`python -m tools.table4 --run=runs/table4`: fills the paper's table 4 into launch/README.md, beside our predictions.

Reads `rowNN.json` of `tools.preflight`; rows that are not there stay empty. See launch/table4.sh.
"""

import json
import pathlib

from absl import flags as absl_flags

from itit import flags

BEGIN, END = "<!-- table 4 begins -->", "<!-- table 4 ends -->"
# arXiv:2310.03734, table 4: text-image-text cycle, image-text-image cycle, steps/s.
ROWS = (("no", "no", 3.41), ("half", "no", 2.41), ("no", "half", 2.19), ("half", "half", 1.64), ("full", "no", 2.25),
        ("no", "full", 2.05), ("full", "full", 1.47))  # fmt: skip
HEAD = ("row", "t2i2t", "i2t2i", "paper: steps/s", "of row 1", "predicted: steps/s, links hidden", "links not hidden",
        "of row 1", "ms by the compiler's cycles", "ms of links, estimated", "HBM a chip, GiB", "MFU")  # fmt: skip


def read(run):
    """Row number -> the prediction, of the rows that are there."""
    paths = {number: pathlib.Path(run) / f"row{number:02d}.json" for number in range(1, len(ROWS) + 1)}
    return {number: json.loads(path.read_text()) for number, path in paths.items() if path.exists()}


def table(results):
    """Lines of Markdown. `results`: row number -> prediction."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for number, (first, second, paper) in enumerate(ROWS, 1):
        cells = [str(number), first, second, f"{paper:.2f}", f"{paper / ROWS[0][2]:.2f}"]
        lines.append("| " + " | ".join(cells + _predicted(results.get(number), results.get(1))) + " |")
    return lines


def _predicted(result, base):
    width = len(HEAD) - 5
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


def fill(text, lines, place):
    """`text` with what stands between the two marks replaced. Raises ValueError where they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{place}: no {BEGIN if not begin else END} in it")
    return "\n".join([before + begin, *lines, end + after])


def main(_):
    given = absl_flags.FLAGS
    results = read(given.run)
    if not results:
        raise ValueError(f"--run={given.run}: no row01.json to row07.json in it; bash launch/table4.sh makes them")
    path = pathlib.Path(given.readme)
    path.write_text(fill(path.read_text(), table(results), path))
    print(f"{len(results)} of {len(ROWS)} rows written into {path}")


if __name__ == "__main__":
    absl_flags.DEFINE_string("run", "runs/table4", "Folder of the rows' JSON.")
    absl_flags.DEFINE_string("readme", "launch/README.md", "File with the marks.")
    flags.run_main(main)
