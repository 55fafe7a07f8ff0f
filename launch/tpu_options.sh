# Sourced by tpu.sh: its options, and how it runs commands. $root is the repository.
# shellcheck shell=bash disable=SC2034,SC2154

usage() {
    cat <<'END'
usage: bash launch/tpu.sh COMMAND [--option=value ...] [-- flags of itit.train]

create       asks for a TPU as a queued resource and waits until it is there; one that was preempted is replaced
setup        copies the code, as committed in git, to all workers and installs what it needs
run          starts python -m itit.train --flagfile=... --workdir=... on all workers, in the background
logs         follows the log of one worker until the run ends
status       state of the TPU, and one line for each worker: running, done, failed, stopped, interrupted, absent
stop         has the run save and end, and waits for it
resume       create, setup and run, and again after every preemption, until the run is done or has failed
tensorboard  TensorBoard of --workdir, here
delete       gives the TPU back

--name=itit            of the TPU
--zone=us-central2-b   --project=            the project of gcloud's configuration if empty
--type=v4-8            accelerator type: v4-512 has 512 cores, which are 256 chips on 64 workers
--version=tpu-ubuntu2204-base                image of the TPU VMs: this one for v4, v2-alpha-tpuv5 for v5p
--spot                 cheaper, and may be taken away at any time
--service_account=     of the TPU VMs; the default one of Compute Engine if empty
--ref=HEAD             commit that setup copies and run expects
--run=NAME             of the run on the TPU; that of --name if empty. A TPU has one run at a time.
--flagfile=FILE        of run and resume, from the root of the repository
--workdir=gs://...     of run, resume and tensorboard
--worker=0             whose log
--poll=60              seconds between two looks at the state
--stop_timeout=900     seconds that stop waits for
--now                  stop kills the run, which saves nothing
--delete_after         resume deletes the TPU when the run is done or has failed
--dry_run              prints the commands and runs none: as if there were no TPU yet (create, resume), or as if there
                       were one (all others)

The environment sets the same: TPU_NAME, TPU_ZONE, ... for --name, --zone, ...
END
}

declare -A option=([name]=itit [zone]=us-central2-b [project]="" [type]=v4-8 [version]=tpu-ubuntu2204-base [spot]=false
    [service_account]="" [ref]=HEAD [run]="" [flagfile]="" [workdir]="" [worker]=0 [poll]=60 [stop_timeout]=900
    [now]=false [delete_after]=false [dry_run]=false)

misuse() {
    echo "error: $*" >&2
    exit 2
}

fail() {
    echo "error: $*" >&2
    exit 1
}

is() { [ "${option[$1]}" = true ]; }

# ---------------------------------------------------------------------------------------------- reading options

read_environment() {
    local key variable
    for key in "${!option[@]}"; do
        variable="TPU_${key^^}"
        option[$key]="${!variable:-${option[$key]}}"
    done
}

# --key=value and --switch, kept in arguments as they are; what follows -- goes into train_flags.
read_options() {
    local key
    arguments=() train_flags=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        [[ "$1" == --* ]] || misuse "unexpected argument '$1': options are written --name=value"
        key="${1%%=*}" key="${key#--}"
        [[ "$key" =~ ^[a-z_]+$ && -n "${option[$key]+known}" ]] ||
            misuse "unknown option --$key: see bash launch/tpu.sh --help"
        if [[ "$1" == *=* ]]; then
            option[$key]="${1#*=}"
        else
            [[ "${option[$key]}" =~ ^(true|false)$ ]] || misuse "--$key needs a value: --$key=VALUE"
            option[$key]=true
        fi
        arguments+=("$1")
        shift
    done
    [ $# -eq 0 ] || train_flags=("${@:2}")
}

# OPTION PATTERN WORDS
must_match() {
    [[ "${option[$1]}" =~ ^$2$ ]] || misuse "--$1=${option[$1]}: must be $3"
}

# COMMAND; sets commit where the command needs one
check_options() {
    local key
    [ -n "${option[run]}" ] || option[run]="${option[name]}"
    must_match name '[a-z]([a-z0-9-]*[a-z0-9])?' "small letters, digits and -, beginning with a letter"
    must_match run '[A-Za-z0-9][A-Za-z0-9_.-]*' "letters, digits, _ . and -"
    must_match zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone, such as us-central2-b"
    must_match type 'v[0-9a-z]+-[0-9]+' "an accelerator type, such as v4-512"
    must_match version '[A-Za-z0-9_.-]+' "an image of TPU VMs, such as tpu-ubuntu2204-base"
    for key in worker stop_timeout; do must_match "$key" '[0-9]+' "a whole number"; done
    must_match poll '[0-9]+(\.[0-9]+)?' "a number of seconds"
    for key in spot now delete_after dry_run; do must_match "$key" '(true|false)' "true or false"; done
    case "$1" in
        run | resume)
            must_match workdir 'gs://.+' "on gs://, since the disks of TPU VMs go with them"
            must_match flagfile '.+' "a flagfile, such as launch/flagfiles/itit_B.cfg"
            ;;
        tensorboard) must_match workdir '.+' "the folder of a run" ;;
    esac
    [[ "$1" =~ ^(setup|run|resume)$ ]] || return 0
    commit="$(git -C "$root" rev-parse --quiet --verify --short=12 "${option[ref]}^{commit}" 2>/dev/null)" ||
        misuse "--ref=${option[ref]}: no commit of a git repository in $root"
    [ "$1" = setup ] || git -C "$root" cat-file -e "$commit:${option[flagfile]}" 2>/dev/null ||
        misuse "--flagfile=${option[flagfile]}: no such file in commit $commit (paths begin at the root)"
}

# ---------------------------------------------------------------------------------------------- running commands

# Arguments as words of a shell command.
quote() {
    local word words=()
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=@,%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        words+=("$word")
    done
    echo "${words[*]}"
}

# A dry run prints to descriptor 3, so that it is seen where the command's output would be read.
act() {
    if is dry_run; then quote "$@" >&3; else "$@" 3>&-; fi
}

say() {
    if is dry_run; then echo "# ${option[name]}: $*" >&3; else echo "${option[name]}: $*"; fi
}

gcloud_tpu() {
    act gcloud compute tpus "$@" --zone="${option[zone]}" ${option[project]:+"--project=${option[project]}"}
}

# all|N COMMAND: a shell command on the workers
on() { gcloud_tpu tpu-vm ssh "${option[name]}" --worker="$1" --quiet --command="$2"; }

# all|N COMMAND [ARGUMENT ...]: a command of worker.sh
worker() { on "$1" "bash itit/current/launch/worker.sh $(quote "$2" "${option[run]}" "${@:3}")"; }

# queued-resources|tpu-vm FIELD: that field of our TPU; nothing if there is none
look_up() {
    gcloud_tpu "$1" list --format="value(name.basename(),$2)" |
        awk -v name="${option[name]}" '$1 == name { print $2 }'
}
