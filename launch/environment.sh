# Sourced by the commands of this repository: makes .venv once and leaves its path in $venv and the root in $root. Asked for
# --help, a command prints its head instead, and ends.
# PYTHON chooses the interpreter (3.10 to 3.12; default python3), $itit_extra what of setup.py's extras is installed beside
# requirements.txt (none). Installed anew when what it installs from changes.
# shellcheck shell=bash
case " $* " in *" --help "* | *" -h "*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0 ;;
esac
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
itit_extra="${itit_extra:-}"
stamp="$(cat "$root/requirements.txt" "$root/setup.py" | "$venv/bin/python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
installed="$venv/installed${itit_extra:+-$itit_extra}"
if [ "$(cat "$installed" 2>/dev/null)" != "$stamp" ]; then
    "$venv/bin/python" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else
        f"error: Python {v[0]}.{v[1]}: must be 3.10 to 3.12; remove .venv and set PYTHON=python3.11, for example")'
    echo "Installing into $venv (once; some 10 GB with CUDA libraries) ..."
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    (cd "$root" && "$venv/bin/python" -m pip install --quiet -r requirements.txt -e ".${itit_extra:+[$itit_extra]}")
    echo "$stamp" | tee "$venv/installed" > "$installed"
fi

# FLAGS of itit.train: ends the script with one line where they are none, before its first step.
check_flags() {
    "$venv/bin/python" -c 'from itit import flags
def main(_):
    flags.from_flags().resolve()
flags.define()
flags.run_main(main)' "$@"
}
