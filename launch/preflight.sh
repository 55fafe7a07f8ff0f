#!/usr/bin/env bash
# What the other flagfiles for v4 pods do on them, predicted as table 4 is (see table4.sh), and written into
# launch/PREDICTIONS.md. Rows 3 and 4, 9 and 12 of table 2 are the steps of rows 1, 3 and 6 of table 4, and row 13 and
# itit_B that of row 14. Needs no TPU; two hours and up to 16 GiB. RUN: where (runs/table4); what is there is skipped.
# Arguments: names, such as itit_L table2/row05; without any, all.
set -euo pipefail
itit_extra="preflight" source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
run="${RUN:-runs/table4}"
[ $# -gt 0 ] || set -- table2/row{01,02,05,06,07,08,10,11,14} coco_finetune itit_L itit_H
for name in "$@"; do
    [ -e "launch/flagfiles/$name.cfg" ] || { echo "error: no launch/flagfiles/$name.cfg" >&2; exit 2; }
done
mkdir -p "$run"
for name in "$@"; do
    for topology in v4:8x8x4 v4:8x8x8; do
        json="$run/${name//\//_}-${topology#v4:}.json"
        [[ $topology != v4:8x8x8 || $name == itit_[LH] ]] || continue
        [ -e "$json" ] || "$venv/bin/python" -m tools.preflight --topology="$topology" \
            --flagfile="launch/flagfiles/$name.cfg" --json="$json" || echo "$name, $topology: see above" >&2
    done
done
"$venv/bin/python" -m tools.table4 --run="$run"
