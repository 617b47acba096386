#!/usr/bin/env bash
# Pre-train a small CMAE on real photographs, in under 10 minutes on 2 cores.
# Usage: bash tools/quickstart.sh [--data DIR] [--work-dir DIR]
#   --data DIR  any folder of images (default: tiles of the photographs in
#               scikit-image and scikit-learn)
set -euo pipefail
case " $* " in *" -h "* | *" --help "*)  # before anything is installed
    sed -n '2,5s/^# //p' "$0"
    exit ;;
esac
here=$PWD
cd "$(dirname "$0")/.."
. tools/environment.sh
ensure_environment onedl quickstart
exec python tools/quickstart/quickstart.py --from-folder "$here" "$@"
