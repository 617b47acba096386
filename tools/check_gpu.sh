#!/usr/bin/env bash
# Run the checks that need a GPU: a few minutes.
# Usage: bash tools/check_gpu.sh [arguments of pytest]
# Prints one table; exit status 0 if nothing failed, 1 if something did, 2 if
# there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "check_gpu.sh: torch finds no CUDA device" >&2
    exit 2
fi
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH}"
status=0
python -m pytest -p result_table tests/gpu "$@" || status=$?
exit $((status != 0))
