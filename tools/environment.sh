# Sourced by quickstart.sh and run_tests.sh: an environment with what they
# need. Takes the active virtual or conda environment, otherwise makes .venv.
# Installs only what is missing: a second run installs nothing.

# ensure_environment REQUIREMENTS... : names of files in requirements/
ensure_environment() {
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            echo "== Making the virtual environment .venv"
            python3 -m venv .venv
        fi
        # shellcheck disable=SC1091
        . .venv/bin/activate
    fi
    python - <<'PY' || { echo "cmae_mm needs Python 3.10 or newer, but this is $(python -V)" >&2; return 1; }
import sys
sys.exit(sys.version_info < (3, 10))
PY
    if python tools/missing_requirements.py "$@" >/dev/null 2>&1; then
        return 0
    fi
    echo "== Installing $* (torch is large: this takes a few minutes)"
    # New environments have an old pip, and packaging is what the check needs.
    python -m pip install --quiet --upgrade pip packaging
    local arguments=()
    for name in "$@"; do
        arguments+=(-r "requirements/$name.txt")
    done
    python -m pip install -c requirements/constraints.txt "${arguments[@]}"
    python -m pip install --quiet --no-deps --no-build-isolation -e . ||
        python -m pip install --quiet --no-deps -e .
    python tools/missing_requirements.py "$@"
}
