#!/usr/bin/env bash
# The model that comes with the package, itit/shipped/scenes: what launch/quickstart.sh has trained, rounded to bf16, with
# its card. RUN: where that was (runs/quickstart); OUTPUT: new folder (itit/shipped/scenes, which is to be removed first).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
run="${RUN:-runs/quickstart}"
"$venv/bin/python" -m tools.export --workdir="$run/itit" --report="$run/report.json" --dtype=bf16 \
    --output="${OUTPUT:-itit/shipped/scenes}" --prompt="a large blue square in the top right" \
    --about="A toy, to try ITIT with. It knows Scenes: pictures of one to three circles, squares, triangles and crosses, \
small or large, in red, green, blue and yellow, each in a corner, and captions of these. Trained within minutes by \
launch/quickstart.sh on 300 pairs, 20,000 unpaired pictures and 20,000 unpaired texts. One object is mostly right, two \
are seldom drawn right. Of its own pictures of one object, saved and read again, it tells every second one right. It \
knows no other words and pictures."
