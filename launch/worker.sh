#!/usr/bin/env bash
# Runs on the workers of a TPU, called by tpu.sh: bash itit/current/launch/worker.sh COMMAND RUN [argument ...]
#
# What lies in ~/itit there: COMMIT/ (the code of one commit), current (the commit that is set up), .venv, and runs/RUN/
# with log, command, pid, status (exit status of itit.train, or "hung", written when it ends) and stopped (stop was
# called).
# A run holds runs/lock as long as it lives. Whether one is going on is asked of the kernel, so that no file left by a
# reboot can tell a lie, and a TPU, which serves one process at a time, is never given to a second.
set -euo pipefail
if [ "${1:-}" = --help ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
fi
code="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
home="$(dirname "$code")"
commit="$(basename "$code")"
venv="$home/.venv"
command="${1:?usage: worker.sh COMMAND RUN [argument ...]}" run="${2:-}"
folder="$home/runs/$run"
mkdir -p "$home/runs"
[ "$command" = train ] || exec 9>>"$home/runs/lock"  # train inherits it, locked

say() { echo "$(hostname) $*"; }

fail() {
    echo "error: $(hostname): $*" >&2
    exit 1
}

# The name of the run that is going on, or nothing.
running() {
    if flock --nonblock 9; then
        flock --unlock 9
    else
        cat "$home/runs/running" 2>/dev/null || true
    fi
}

# Takes the lock, for as long as this process and those it leaves behind live. A short wait: `running` holds it, too.
take_lock() { flock --wait 0.2 9; }

install_python() {
    local stamp
    stamp="$(sha256sum < "$code/requirements.txt")"
    [ "$(cat "$venv/installed" 2>/dev/null)" != "$stamp" ] || return 0
    if ! "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null; then
        sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
        sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes python3-venv
    fi
    [ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    # The extra brings libtpu; which version of torch_xla stands in requirements.txt.
    "$venv/bin/python" -m pip install --quiet -r "$code/requirements.txt" 'torch_xla[tpu]'
    echo "$stamp" > "$venv/installed"
}

setup() {
    if [ "$(readlink "$home/current")" = "$commit" ]; then
        say "has commit $commit already"
        return
    fi
    take_lock || fail "run $(running) is going on: stop it before another commit is set up"
    rm -f "$home/runs/running"
    install_python
    ln -sfn "$commit" "$home/current"
    say "has commit $commit"
}

start() {
    local wanted="$1"
    shift
    [ "$commit" = "$wanted" ] || fail "has commit $commit, not $wanted: call setup"
    if ! take_lock; then
        [ "$(running)" = "$run" ] || fail "run $(running) is going on: stop it first"
        [ "$(cat "$folder/command")" = "$*" ] || fail "$run runs already with other flags: $(cat "$folder/command")"
        say "$run runs already"
        return
    fi
    mkdir -p "$folder"
    rm -f "$folder/pid" "$folder/status" "$folder/stopped"
    echo "$run" > "$home/runs/running"
    echo "$*" > "$folder/command"
    # In a session of its own, so that it outlives this connection; it inherits the lock.
    setsid nohup bash "${BASH_SOURCE[0]}" train "$run" "$@" >> "$folder/log" 2>&1 < /dev/null &
    until [ -s "$folder/pid" ]; do sleep 0.05; done
    say "$run started"
}

# In the background. Dies with the machine, and then leaves no status. The watchdog's exit status, 1, is that of any
# error: what tells it apart is the first line of the stacks that faulthandler writes.
train() {
    local status=0 before
    before="$(stat --format=%s "$folder/log")"
    cd "$code"
    echo "$(date --utc +%FT%TZ) commit $commit: python -m itit.train $*"
    PJRT_DEVICE=TPU "$venv/bin/python" -u -m itit.train "$@" &
    echo "$$" > "$folder/group"
    echo "$!" > "$folder/pid"
    wait "$!" || status=$?
    if [ "$status" = 1 ] && tail -c "+$((before + 1))" "$folder/log" | grep -aq 'Timeout ([0-9:.]*)!$'; then status=hung; fi
    echo "$status" > "$folder/status"
}

# One line: host, one word for the state (running, done, failed, hung, stopped, interrupted, absent), how far it is.
status() {
    local word=interrupted code="" live
    live="$(running)"  # asked first: a run writes its status before it lets go of the lock
    [ ! -f "$folder/status" ] || code="$(cat "$folder/status")"
    if [ ! -d "$folder" ]; then
        word=absent
    elif [ "$live" = "$run" ]; then
        word=running
    elif [ "$code" = 0 ]; then
        word="done"
    elif [ "$code" = hung ]; then
        word=hung
    elif [ -n "$code" ] && [ "$code" != 130 ] && [ "$code" != 143 ]; then  # by nobody's signal
        word="failed with exit status $code"
    elif [ -f "$folder/stopped" ]; then
        word=stopped
    fi
    say "$word $(tail -c 20000 "$folder/log" 2>/dev/null | grep -a '^step ' | tail -n 1)"
}

# TERM|KILL SECONDS. The first SIGTERM makes the trainer save at the end of the step. It is not sent twice: a second one
# would not save. SIGKILL is for one that hangs.
stop() {
    if [ "$(running)" != "$run" ]; then
        say "$run is not running"
        return
    fi
    if [ "$1" = KILL ]; then
        touch "$folder/stopped"
        kill -KILL -- "-$(cat "$folder/group")" 2>/dev/null || true
    elif [ ! -e "$folder/stopped" ]; then
        touch "$folder/stopped"
        kill -TERM "$(cat "$folder/pid")" 2>/dev/null || true
    fi
    flock --wait "$2" 9 || fail "$run has not ended within $2 s: stop waits again, --now kills it"
    status
}

follow() {
    [ -f "$folder/log" ] || fail "no log of run $run"
    if [ "$(running)" = "$run" ]; then
        exec tail -n 100 --pid="$(cat "$folder/pid")" -F "$folder/log"
    fi
    tail -n 100 "$folder/log"
}

# Of a run that failed or hung; nothing from other workers.
last_lines() {
    [[ ! "$(status)" =~ \ (failed|hung)\  ]] || tail -n 20 "$folder/log" | sed "s/^/$(hostname) /"
}

case "$command" in
    setup | start | train | status | stop | follow | last_lines) "$command" "${@:3}" ;;
    *) fail "unknown command $command" ;;
esac
