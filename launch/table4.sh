#!/usr/bin/env bash
# The paper's table 4, predicted: compiles its seven rows for 256 TPU v4 chips that need not be there, and writes the
# table into launch/PREDICTIONS.md. Needs no TPU. RUN: where (runs/table4); rows that are there are skipped. Arguments go
# to tools.preflight.
set -euo pipefail
itit_extra="preflight" source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
run="${RUN:-runs/table4}"
"$venv/bin/python" -m tools.preflight --flagfile=launch/flagfiles/table4/row01.cfg "$@" --topology=list > /dev/null
mkdir -p "$run"
for row in 01 02 03 04 05 06 07; do
    [ -e "$run/row$row.json" ] || "$venv/bin/python" -m tools.preflight --topology=v4:8x8x4 \
        --flagfile="launch/flagfiles/table4/row$row.cfg" --json="$run/row$row.json" "$@" || echo "row $row: see above" >&2
done
"$venv/bin/python" -m tools.table4 --run="$run"
