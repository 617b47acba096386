#!/usr/bin/env bash
# Run the tests, in an environment with everything they need.
# Usage: bash tools/run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh
ensure_environment torch onedl data quickstart tests
ruff check .
exec python -m pytest "$@"
