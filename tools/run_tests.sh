#!/usr/bin/env bash
# Run the tests, in an environment with everything they need.
# Usage: bash tools/run_tests.sh [arguments of pytest]
# NO_OPS=1 leaves mmcv's operators out, whose build takes 15 to 30 minutes the
# first time: the tests of detection and segmentation are then skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh
ensure_environment onedl quickstart det seg tests
if [ -z "${NO_OPS:-}" ]; then
    bash tools/install_ops.sh ||
        echo "== Tests of detection and segmentation are SKIPPED (see above)"
fi
ruff check .
exec python -m pytest "$@"
