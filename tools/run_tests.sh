#!/usr/bin/env bash
# Run ruff, mypy and the tests, in an environment with everything they need.
# Usage: bash tools/run_tests.sh [arguments of pytest]
# NO_OPS=1 leaves mmcv's operators out, whose build takes 10 to 30 minutes the
# first time: the tests of detection and segmentation are then skipped.
# NO_INSTALL=1 takes the environment as it is. JOBS: processes of tests at once
# (default: the cores, at most 4).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh
if [ -z "${NO_INSTALL:-}" ]; then
    ensure_environment onedl quickstart det seg tests
    if [ -z "${NO_OPS:-}" ]; then
        bash tools/install_ops.sh ||
            echo "== Tests of detection and segmentation are SKIPPED (see above)"
    fi
fi
ruff check .
mypy
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
jobs=${JOBS:-$((cores < 4 ? cores : 4))}
# Several trainings with several threads each slow each other down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -n "$jobs" --dist loadfile "$@"
