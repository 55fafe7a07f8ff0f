#!/usr/bin/env bash
# One's own pictures and texts to a trained ITIT and a report: bash launch/own.sh PICTURES [TEXTS] [--flag=value ...].
# Makes .venv and calls tools.start in the root of the repository. PICTURES and TEXTS are looked for where it is typed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
words=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    case "$1" in /*) words+=("$1") ;; *) words+=("$PWD/$1") ;; esac
    shift
done
cd "$root"
exec "$venv/bin/python" -m tools.start ${words[@]+"${words[@]}"} "$@"
