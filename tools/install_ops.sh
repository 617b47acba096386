#!/usr/bin/env bash
# Install mmcv with its compiled operators, which detection and segmentation
# need. Builds the installed mmcv again from source, 10 to 60 minutes on 2
# cores, and keeps the wheel in $CMAE_WHEELS (by default
# ~/.cache/cmae_mm/wheels), so that it is built once. With OneDL's packages that
# is onedl-mmcv, with the original ones mmcv in place of mmcv-lite. Where a
# ready wheel exists, its command is shown first.
# Usage: bash tools/install_ops.sh
#   MAX_JOBS: compilers at once (default: the cores, as far as memory goes)
#   CACHED=1: install a wheel that is in the cache, build none
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

# Prints: name and version of the distribution, key of the wheel, compilers at
# once, and the command that installs a ready wheel for this torch and CUDA.
facts=$(python - <<'PY'
import os, platform, sys
from importlib import metadata
try:
    import torch
except ImportError:
    sys.exit('install torch first, see the README')

def version_of(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass

name, version = 'onedl-mmcv', version_of('onedl-mmcv')
if version is None:
    name = 'mmcv'
    # 2.1.0 is the one that mmdet 3.3.0 and mmseg 1.2.2 accept.
    version = version_of('mmcv', 'mmcv-lite') or '2.1.0'
    if version_of('mmengine') is None or version_of('onedl-mmengine'):
        sys.exit("neither onedl-mmcv nor the original mmengine is installed; "
                 "install one with `pip install -e '.[onedl]'` or "
                 "`pip install -e '.[openmmlab,lite]'`")
device = f'cu{torch.version.cuda}' if torch.cuda.is_available() else 'cpu'
key = (f'torch{torch.__version__}-{device}-cp{sys.version_info[0]}'
       f'{sys.version_info[1]}-{platform.machine()}')
# A compiler takes about 0.7 GB.
count = getattr(os, 'sched_getaffinity', None)
cores = len(count(0)) if count else os.cpu_count() or 1
memory = cores
try:
    with open('/proc/meminfo') as lines:
        free = {l.split(':')[0]: int(l.split()[1]) for l in lines}
    memory = int(free['MemAvailable'] / 1024**2 / 0.7)
except (OSError, KeyError):
    pass
numbers = tuple(int(n) for n in torch.__version__.split('.')[:2])
cuda = torch.version.cuda
ready = ''
if name == 'mmcv' and numbers == (2, 1) and version.startswith('2.1.'):
    ready = f'pip install openmim && mim install mmcv=={version}'
elif (name == 'onedl-mmcv' and cuda and (2, 4) <= numbers <= (2, 12)
      and 11.8 <= float(cuda) <= 13.0):
    ready = f'pip install onedl-mim && mim install onedl-mmcv=={version}'
print(name, version, key, max(1, min(cores, memory)), ready)
PY
) || { echo "install_ops.sh: see above" >&2; exit 1; }
read -r name version key jobs ready <<<"$facts"
wheels=${CMAE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/cmae_mm/wheels}
file=${name//-/_}
folder=$wheels/$file-$version-$key

# Prints nothing where there is none, or no such folder.
find_wheel() {
    find "$1" -name "$file-*.whl" ! -name '*-none-any.whl' 2>/dev/null |
        head -1 || true
}
wheel=$(find_wheel "$folder")
if [ -z "$wheel" ]; then
    if [ -n "${CACHED:-}" ]; then
        echo "install_ops.sh: there is no wheel in $folder" >&2
        exit 1
    fi
    if [ -n "$ready" ]; then
        echo "== There are ready wheels for this torch. Instead of waiting for" \
            "this build, you can stop it and run:"
        echo "       $ready"
    fi
    if ! command -v c++ >/dev/null; then
        echo "install_ops.sh: no C++ compiler (c++) was found, which mmcv's" \
            "operators are built with; install one, e.g. apt install g++" >&2
        exit 1
    fi
    jobs=${MAX_JOBS:-$jobs}
    echo "== Building mmcv's operators, once, with $jobs compilers at once" \
        "(10 to 60 minutes on 2 cores)"
    # The build must see torch: hence no isolation, and its needs are here.
    # setuptools 82 has no pkg_resources, which the original's setup imports.
    setuptools='setuptools<82'
    [ "$name" = mmcv ] || setuptools='setuptools>=80,<82'
    python -m pip install --quiet "$setuptools" wheel ninja psutil packaging \
        numpy
    mkdir -p "$wheels"
    build=$(mktemp -d "$wheels/building.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    # A wheel without operators may be in pip's cache: not taken.
    MAX_JOBS=$jobs MMCV_WITH_OPS=1 python -m pip wheel --no-build-isolation \
        --no-deps --no-cache-dir --no-binary "$name" \
        "$name==$version" -w "$build" >"$build/build.log" 2>&1 || {
        tail -20 "$build/build.log" >&2
        mv "$build/build.log" "$wheels/build.log"
        echo "install_ops.sh: the build failed; all of its output is in" \
            "$wheels/build.log" >&2
        exit 1
    }
    if [ -z "$(find_wheel "$build")" ]; then
        mv "$build/build.log" "$wheels/build.log"
        echo "install_ops.sh: the build made no operators, see" \
            "$wheels/build.log" >&2
        exit 1
    fi
    rm -rf "$folder"
    mv "$build" "$folder"
    wheel=$(find_wheel "$folder")
fi
# Both own the module: what mmcv-lite leaves would be mixed with mmcv.
if [ "$name" = mmcv ]; then
    python -m pip uninstall --quiet --yes mmcv-lite
fi
# What it needs came with mmengine.
python -m pip install --quiet --no-deps --force-reinstall "$wheel"
if ! has_ops; then
    python -c 'import mmcv.ops' || true
    echo "install_ops.sh: $wheel cannot be imported; remove it and try again" >&2
    exit 1
fi
echo "== mmcv's operators are installed ($wheel)"
