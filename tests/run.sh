#!/usr/bin/env bash
# Sets up .venv (PYTHON chooses the interpreter), then lint, format and the whole suite, two files of tests at a time.
# Arguments go to pytest.
set -euo pipefail
itit_extra="test" source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"
cd "$root"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
