# The guide's set-up:  source setup_env.sh
# A conda environment `mot` where conda exists, else .venv; then the package with every pin. Works from bash and zsh.
# It is sourced, so it must neither `exit` nor `set -e`: both would end the caller's shell.

_mot_here="$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")" 2>/dev/null && pwd)"

_mot_setup() {
    cd "$_mot_here" || return 1
    if command -v conda >/dev/null 2>&1; then
        eval "$(conda shell.posix hook)" || return 1
        if ! conda env list | grep -qE '^mot[[:space:]]'; then
            conda create --yes --name mot python=3.11 || return 1
        fi
        conda activate mot || return 1
    else
        [ -d .venv ] || python3 -m venv .venv || return 1
        . .venv/bin/activate || return 1
    fi
    python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" || return 1
    echo "ready: $(command -v python); try  python train_mot.py --help"
}

_mot_setup || echo "setup_env.sh: failed, see above" >&2
unset -f _mot_setup
unset _mot_here
