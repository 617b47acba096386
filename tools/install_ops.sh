#!/usr/bin/env bash
# Install mmcv with its compiled operators, which detection and segmentation
# need: builds the installed onedl-mmcv again from source, 10 to 30 minutes on
# 2 cores, and keeps the wheel in $CMAE_WHEELS (by default
# ~/.cache/cmae_mm/wheels), so that it is built once. Where a ready wheel is to
# be had, its command is shown first.
# Usage: bash tools/install_ops.sh
#   MAX_JOBS: compilers at once (default: the cores, as far as memory goes)
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ] &&
    [ -x .venv/bin/python ]; then
    . .venv/bin/activate
fi

has_ops() { python -c 'import mmcv.ops' >/dev/null 2>&1; }
if has_ops; then
    exit 0
fi

# Prints: version of onedl-mmcv, key of the wheel, compilers at once, and
# whether OneDL's index has a wheel for this torch and CUDA.
facts=$(python - <<'PY'
import os, platform, sys
from importlib import metadata
try:
    import torch
except ImportError:
    sys.exit('install torch first, see the README')
try:
    version = metadata.version('onedl-mmcv')
except metadata.PackageNotFoundError:
    sys.exit("onedl-mmcv is not installed, whose operators these are; install "
             "it with `pip install -e '.[onedl]'` (for the original packages: "
             "a wheel of mmcv for your torch, with `mim install mmcv`)")
device = f'cu{torch.version.cuda}' if torch.cuda.is_available() else 'cpu'
key = (f'torch{torch.__version__}-{device}-cp{sys.version_info[0]}'
       f'{sys.version_info[1]}-{platform.machine()}')
# A compiler takes about 0.7 GB.
cores = len(os.sched_getaffinity(0))
memory = cores
try:
    with open('/proc/meminfo') as lines:
        free = {l.split(':')[0]: int(l.split()[1]) for l in lines}
    memory = int(free['MemAvailable'] / 1024**2 / 0.7)
except (OSError, KeyError):
    pass
numbers = tuple(int(n) for n in torch.__version__.split('.')[:2])
cuda = torch.version.cuda
ready = (cuda is not None and (2, 4) <= numbers <= (2, 12)
         and 11.8 <= float(cuda) <= 13.0)
print(version, key, max(1, min(cores, memory)), int(ready))
PY
) || { echo "install_ops.sh: see above" >&2; exit 1; }
read -r version key jobs ready <<<"$facts"
wheels=${CMAE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/cmae_mm/wheels}
folder=$wheels/onedl_mmcv-$version-$key

# Prints nothing where there is none, or no such folder.
find_wheel() {
    find "$1" -name 'onedl_mmcv-*.whl' ! -name '*-none-any.whl' 2>/dev/null |
        head -1 || true
}
wheel=$(find_wheel "$folder")
if [ -z "$wheel" ]; then
    if [ "$ready" = 1 ]; then
        echo "== OneDL has ready wheels for this torch and CUDA. Instead of" \
            "waiting for this build, you can stop it and run:"
        echo "       pip install onedl-mim && mim install onedl-mmcv==$version"
    fi
    if ! command -v c++ >/dev/null; then
        echo "install_ops.sh: no C++ compiler (c++) was found, which mmcv's" \
            "operators are built with; install one, e.g. apt install g++" >&2
        exit 1
    fi
    jobs=${MAX_JOBS:-$jobs}
    echo "== Building mmcv's operators, once, with $jobs compilers at once" \
        "(10 to 30 minutes on 2 cores)"
    # The build must see torch: hence no isolation, and its needs are here.
    python -m pip install --quiet 'setuptools>=80,<82' wheel ninja psutil \
        packaging numpy
    mkdir -p "$wheels"
    build=$(mktemp -d "$wheels/building.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    # A wheel without operators may be in pip's cache: not taken.
    MAX_JOBS=$jobs python -m pip wheel --no-build-isolation \
        --no-deps --no-cache-dir --no-binary onedl-mmcv \
        "onedl-mmcv==$version" -w "$build" >"$wheels/build.log" 2>&1 || {
        tail -20 "$wheels/build.log" >&2
        echo "install_ops.sh: the build failed; all of its output is in" \
            "$wheels/build.log" >&2
        exit 1
    }
    if [ -z "$(find_wheel "$build")" ]; then
        echo "install_ops.sh: the build made no operators, see" \
            "$wheels/build.log" >&2
        exit 1
    fi
    rm -rf "$folder"
    mv "$build" "$folder"
    wheel=$(find_wheel "$folder")
fi
# The wheel of the same version is installed already, with all that it needs.
python -m pip install --quiet --no-deps --force-reinstall "$wheel"
if ! has_ops; then
    python -c 'import mmcv.ops' || true
    echo "install_ops.sh: $wheel cannot be imported; remove it and try again" >&2
    exit 1
fi
echo "== mmcv's operators are installed ($wheel)"
