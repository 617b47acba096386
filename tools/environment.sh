# Sourced by quickstart.sh and run_tests.sh: an environment with what they
# need. Takes the active virtual or conda environment, otherwise makes .venv.
# Installs only what is missing: a second run installs nothing.

# activate_environment : take the active one, or .venv, which is made
activate_environment() {
    local python=${PYTHON:-python3}
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
                echo "cmae_mm needs Python 3.10 or newer, but $python is" \
                    "$("$python" -V); name another one with" \
                    "PYTHON=/path/to/python3" >&2
                return 1
            }
            echo "== Making the virtual environment .venv"
            "$python" -m venv .venv || {
                rm -rf .venv
                echo "python3 cannot make a virtual environment: install" \
                    "python3-venv, or activate an environment" >&2
                return 1
            }
        fi
        # shellcheck disable=SC1091
        . .venv/bin/activate
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "cmae_mm needs Python 3.10 or newer, but this is $(python -V)" >&2
        return 1
    }
}

# ensure_environment EXTRAS... : names of extras in setup.cfg
ensure_environment() {
    activate_environment || return 1
    if python tools/missing_requirements.py "$@" >/dev/null 2>&1; then
        return 0
    fi
    local list
    list=$(IFS=,; echo "$*")
    echo "== Installing cmae_mm[$list] (torch is large: this takes a few minutes)"
    # New environments have an old pip, and packaging is what the check needs.
    python -m pip install --quiet --upgrade pip packaging || return 1
    local constraints
    constraints=$(mktemp)
    python tools/missing_requirements.py --constraints "$@" >"$constraints" &&
        PYTHONWARNINGS=ignore python -m pip install --quiet \
            --progress-bar off -c "$constraints" -e ".[$list]" || {
        rm -f "$constraints"
        echo "The installation failed, see above; fix the error and run the" \
            "same command again" >&2
        return 1
    }
    rm -f "$constraints"
    local missing
    missing=$(python tools/missing_requirements.py "$@") || {
        echo "The installation is not whole: $missing" >&2
        return 1
    }
}
