#!/usr/bin/env bash
# The tests of faults in their long form: a line a fault, then how many passed and failed. Exits with 1 if any failed.
set -uo pipefail
itit_extra="test" source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"
cd "$root" || exit 1
ITIT_FAULT_REPORT=$(mktemp)
export ITIT_FAULT_REPORT
log=$(mktemp)
passed=0
failed=0

# long ROUNDS WHAT...: the tests WHAT, with so many rounds where they count any. Tests that report no line get one.
long() {
  local rounds=$1 lines said found lost
  shift
  lines=$(wc -l < "$ITIT_FAULT_REPORT")
  SECONDS=0
  ITIT_FAULT_ROUNDS=$rounds "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" > "$log" 2>&1 || tail -n 60 "$log" >&2
  said=$(tail -n 1 "$log")
  found=$(grep -oE '[0-9]+ passed' <<< "$said" | awk '{sum += $1} END {print sum + 0}')
  lost=$(grep -oE '[0-9]+ (failed|error)' <<< "$said" | awk '{sum += $1} END {print sum + 0}')
  [ $((found + lost)) -gt 0 ] || lost=1 # it did not even start
  passed=$((passed + found)) failed=$((failed + lost))
  if [ "$lost" -gt 0 ] || [ "$(wc -l < "$ITIT_FAULT_REPORT")" -eq "$lines" ]; then
    echo "$*: $rounds rounds, $lost failed, $SECONDS s" >> "$ITIT_FAULT_REPORT"
  fi
}

long 200 tests/training/test_faults.py -k sigkill
long 1 tests/training/test_faults.py -k in_turn
long 20 tests/training/test_faults.py -k weather
long 20 tests/training/test_faults.py -k "sigterm or second_signal"
long 1 tests/training/test_faults.py -k stopped_host
long 1 tests/training/test_watchdog.py
long 1 tests/checkpoint/test_checkpoint.py -k full
long 50 tests/checkpoint/test_checkpoint_hosts.py -k sigkill
long 1000 tests/data/test_damage.py
long 1 tests/data/test_streams_order.py
long 1 tests/checkpoint/test_hostile.py
long 1 tests/tools/convert/test_pickled.py
long 1 tests/tools/data/test_webdataset.py
long 7 tests/tools/own/test_start.py -k killed

cat "$ITIT_FAULT_REPORT"
echo "$passed passed, $failed failed"
rm -f "$log" "$ITIT_FAULT_REPORT"
((failed == 0))
