#!/usr/bin/env bash
# Install mmcv with its compiled operators, which detection and segmentation
# need. Where a ready wheel for your torch and CUDA is to be had (OpenMMLab's or
# OneDL's index), install that instead: this builds one from source, for 15 to
# 30 minutes on 2 cores, and keeps it in $CMAE_WHEELS (by default
# ~/.cache/cmae_mm/wheels), so that it is built once.
# Usage: bash tools/install_ops.sh     MAX_JOBS: compilers at once (default: 2)
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

version=$(sed -n 's/^onedl-mmcv==//p' requirements/onedl.txt)
key=$(python - <<'PY'
import platform, sys, torch
device = f'cu{torch.version.cuda}' if torch.cuda.is_available() else 'cpu'
print(f'torch{torch.__version__}-{device}-cp{sys.version_info[0]}'
      f'{sys.version_info[1]}-{platform.machine()}')
PY
) || { echo "install_ops.sh: install torch first, see the README" >&2; exit 1; }
wheels=${CMAE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/cmae_mm/wheels}
folder=$wheels/onedl_mmcv-$version-$key

# Prints nothing where there is none, or no such folder.
find_wheel() {
    find "$1" -name 'onedl_mmcv-*.whl' ! -name '*-none-any.whl' 2>/dev/null |
        head -1 || true
}
wheel=$(find_wheel "$folder")
if [ -z "$wheel" ]; then
    if ! command -v c++ >/dev/null; then
        echo "install_ops.sh: no C++ compiler (c++) was found, which mmcv's" \
            "operators are built with; install one, e.g. apt install g++" >&2
        exit 1
    fi
    echo "== Building mmcv's operators (15 to 30 minutes on 2 cores), once"
    # The build must see torch: hence no isolation, and its needs are here.
    python -m pip install --quiet 'setuptools>=80,<82' wheel ninja psutil \
        packaging numpy
    mkdir -p "$wheels"
    build=$(mktemp -d "$wheels/building.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    # A wheel without operators may be in pip's cache: not taken.
    MAX_JOBS=${MAX_JOBS:-2} python -m pip wheel --no-build-isolation \
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
python -m pip install --quiet --no-deps --force-reinstall "$wheel"
if ! has_ops; then
    python -c 'import mmcv.ops' || true
    echo "install_ops.sh: $wheel cannot be imported; remove it and try again" >&2
    exit 1
fi
echo "== mmcv's operators are installed ($wheel)"
