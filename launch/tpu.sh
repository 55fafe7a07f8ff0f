#!/usr/bin/env bash
# Cloud TPUs from here: create, set up, run, watch, stop, resume, delete. See --help and TPU.md.
# Every command does what is not done yet, so that it may be given again. What happens on the workers is in worker.sh.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: bash $BASH_VERSION: must be 4.4 or later" >&2
    exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
patience=10  # failures in a row, and hangs in all, after which resume gives up
exec 3>&1
# shellcheck source=tpu_options.sh
source "$root/launch/tpu_options.sh"

# ACTIVE or why not: NONE, another state of the queued resource, or that of the TPU where it is not READY (a preempted
# one is PREEMPTED or gone before its queued resource is SUSPENDED). A dry run says what the command assumes.
state() {
    local queued node
    queued="$(look_up queued-resources state.state)" || return
    if is dry_run; then queued="$assumed"; fi
    if [ "$queued" = ACTIVE ]; then
        node="$(look_up tpu-vm state)" || return
        is dry_run || [ "$node" = READY ] || queued="${node:-GONE}"
    fi
    echo "${queued:-NONE}"
}

need_tpu() {
    local now
    now="$(state)"
    [ "$now" = ACTIVE ] || fail "TPU ${option[name]} in ${option[zone]} is not there ($now): call create"
}

tpu_create() {
    local now asked=false flags=(--node-id="${option[name]}" --accelerator-type="${option[type]}"
        --runtime-version="${option[version]}")
    if is spot; then flags+=(--spot); fi
    [ -z "${option[service_account]}" ] || flags+=(--service-account="${option[service_account]}")
    while true; do
        now="$(state)"
        case "$now" in
            ACTIVE)
                say "is there"
                return
                ;;
            NONE)
                gcloud_tpu queued-resources create "${option[name]}" "${flags[@]}" --quiet
                asked=true assumed=ACTIVE
                ;;
            FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED | GONE)
                if [ "$now $asked" = "FAILED true" ]; then
                    gcloud_tpu queued-resources describe "${option[name]}" --format="yaml(state)" >&2
                    fail "the request for TPU ${option[name]} has failed"
                fi
                say "is $now: asking anew"
                tpu_delete
                ;;
            *)
                say "$now, waiting for $((SECONDS / 60)) minutes"
                sleep "${option[poll]}"
                ;;
        esac
    done
}

tpu_setup() {
    local file="itit-$commit.tar.gz" unpack name_alone=()
    need_tpu
    # A name that nobody can foretell: in a shared /tmp another's link may wait under one that they can.
    if is dry_run; then name_alone=(-u); fi
    archive="$(mktemp "${name_alone[@]}" "${TMPDIR:-/tmp}/itit.XXXXXX")"
    trap 'rm -f "$archive"' EXIT
    [ -z "$(git -C "$root" status --porcelain)" ] || say "note: changes that are not committed are not copied"
    act git -C "$root" archive --format=tar.gz --output="$archive" "$commit"
    gcloud_tpu tpu-vm scp "$archive" "${option[name]}:$file" --worker=all --quiet
    unpack="mkdir -p itit/$commit && tar -xzf $file -C itit/$commit"
    on all "$unpack && bash itit/$commit/launch/worker.sh setup"
}

tpu_run() {
    need_tpu
    worker all start "$commit" --flagfile="${option[flagfile]}" --workdir="${option[workdir]}" --backend=xla \
        "${train_flags[@]}"
}

tpu_logs() {
    need_tpu
    worker "${option[worker]}" follow
}

tpu_status() {
    local now
    now="$(state)"
    say "$now"
    [ "$now" != ACTIVE ] || worker all status
}

tpu_stop() {
    local now
    now="$(state)"
    if [ "$now" = ACTIVE ]; then
        worker all stop "$(is now && echo KILL || echo TERM)" "${option[stop_timeout]}"
    else
        say "$now: nothing to stop"
    fi
}

tpu_tensorboard() {
    local venv="$root/.venv"
    # shellcheck source=environment.sh
    is dry_run || source "$root/launch/environment.sh"
    act "$venv/bin/tensorboard" --logdir="${option[workdir]}"
}

tpu_delete() {
    local queued
    queued="$(look_up queued-resources state.state)"
    if is dry_run || [ -n "$queued" ]; then
        gcloud_tpu queued-resources delete "${option[name]}" --force --quiet
    else
        say "is not there: nothing to delete"
    fi
}

# ---------------------------------------------------------------------------------------------- resume

# One word for the run on all workers: running, done, hung (the watchdog ended it on one, and others wait or fail for want
# of that one), failed, stopped, partial (it lives on some of them and cannot go on), interrupted (on none), gone (no
# TPU), unreachable.
verdict() {
    local now lines words noise
    now="$(state)" || { echo unreachable; return; }
    [ "$now" = ACTIVE ] || { echo gone; return; }
    noise="$(mktemp)"
    lines="$(worker all status 2> "$noise")" || { cat "$noise" >&2; now=unreachable; }
    rm "$noise"
    [ "$now" = ACTIVE ] || { echo "$now"; return; }
    words="$(awk 'NF > 1 { print $2 }' <<< "$lines" | sort -u | tr '\n' ' ')"
    say "${words}on $(wc -l <<< "$lines") workers; $(head -n 1 <<< "$lines")" >&2
    case "$words" in
        *hung*) echo hung ;;
        *failed*) echo failed ;;
        "done " | "stopped ") echo "${words% }" ;;
        "running " | "done running ") echo running ;;
        *running*) echo partial ;;
        *) echo interrupted ;;
    esac
}

# Another command of this script, as a process of its own, so that its failure is no end of this one. The commit stays
# the one that resume began with.
again() { "$BASH" "$root/launch/tpu.sh" "$1" "${arguments[@]}" --ref="$commit" "${@:2}" -- "${train_flags[@]}"; }

finish() {
    if is delete_after; then tpu_delete; fi
}

tpu_resume() {
    local now last="" started=false failures=0 hangs=0
    while true; do
        now="$(verdict)"
        if [ "$now" = partial ] && [ "$last" != partial ]; then # looked at twice: a stop does not come to all at once
            last="$now"
            sleep "${option[poll]}"
            continue
        fi
        case "$now" in
            running) failures=0 ;;
            done)
                say "the run is done"
                finish
                return
                ;;
            # Looked at twice: workers also fail in the moments before a preemption is told.
            failed)
                if [ "$last" = failed ]; then
                    worker all last_lines || true
                    finish
                    fail "the run has failed: not started again"
                fi
                ;;
            unreachable) failures=$((failures + 1)) ;;
            hung)
                hangs=$((hangs + 1))
                if [ "$hangs" = "$patience" ]; then
                    worker all last_lines || true
                    finish
                    fail "the run has hung $patience times: not started again"
                fi
                ;;&
            *)
                if [ "$now $started" = "stopped true" ]; then
                    say "the run was stopped"
                    return
                fi
                [[ $now != partial && $now != hung ]] || again stop --now || true
                if again create && again setup && again run; then started=true; else failures=$((failures + 1)); fi
                ;;
        esac
        [ "$failures" -lt "$patience" ] || fail "$patience failures in a row: resume gives up; the TPU may be there"
        if is dry_run; then
            assumed=ACTIVE
            state > /dev/null
            worker all status
            return
        fi
        [ "$now" != running ] || started=true
        last="$now"
        sleep "${option[poll]}"
    done
}

# ---------------------------------------------------------------------------------------------- main

command="${1:-}" assumed=ACTIVE
case "$command" in
    -h | --help)
        usage
        exit
        ;;
    create | resume) assumed=NONE ;;
    setup | run | logs | status | stop | tensorboard | delete) ;;
    *) misuse "unknown command '$command': see bash launch/tpu.sh --help" ;;
esac
read_environment
read_options "${@:2}"
check_options "$command"
"tpu_$command"
