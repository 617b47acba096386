#!/usr/bin/env bash
# Makes an environment as existing OpenMMLab projects have it (torch 2.1, the
# original packages), installs the plugin into it, and runs the tests there.
# Nothing that was installed before may change. Detection and segmentation take
# part where mmcv's operators are in the cache of tools/install_ops.sh.
# Usage: .ci/try_original.sh FOLDER [arguments of pytest]    FOLDER is made
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
mkdir -p "$folder"
python3 -m venv "$folder/env"
export PATH=$folder/env/bin:$PATH VIRTUAL_ENV=$folder/env
pip() { python -m pip "$@"; }
install() { pip install --quiet --progress-bar off -c "$folder/pins.txt" "$@"; }

names=$(sed -n 's/==.*//p' requirements/original.txt | paste -sd '|')
{
    cat requirements/original.txt
    grep -vE "^($names)==" requirements/constraints.txt
} >"$folder/pins.txt"
pip install --quiet --upgrade pip 'setuptools<82' wheel
install torch torchvision numpy mmengine
extras=openmmlab
if ! CACHED=1 bash tools/install_ops.sh; then
    echo "== No operators of mmcv are cached: mmcv-lite takes the place of" \
        "mmcv, and tests of detection and segmentation are skipped"
    extras=openmmlab,lite
fi
# mmsegmentation needs ftfy and regex, and does not say so.
install mmpretrain mmdet mmsegmentation ftfy regex

pip freeze | sort >"$folder/before.txt"
# Without exact versions, as in somebody's environment.
pip install --quiet --progress-bar off -e ".[$extras]"
pip freeze | sort >"$folder/after.txt"
changed=$(comm -23 "$folder/before.txt" "$folder/after.txt")
if [ -n "$changed" ]; then
    echo "Installing the plugin has changed: $changed" >&2
    exit 1
fi
echo "== The plugin leaves $(wc -l <"$folder/before.txt") packages as they were"
pip check

install -e ".[$extras,quickstart,tests]" pyarrow
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
OMP_NUM_THREADS=1 python -m pytest -rs -n "$((cores < 4 ? cores : 4))" \
    --dist loadfile "$@"
# openmim brings a pandas that would replace numpy.
install openmim 'pandas<3'
bash .ci/try_mim.sh "$PWD" "$folder/mim"
