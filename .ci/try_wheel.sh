#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment, and uses it in a folder
# of its own, where nothing of the clone can be found.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
scratch=${scratch:-$(mktemp -d)}

python3 -m venv "$scratch/build"
"$scratch/build/bin/python" -m pip install --quiet --upgrade pip build twine
"$scratch/build/bin/python" -m build --outdir "$scratch/dist" . \
    >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; exit 1; }
"$scratch/build/bin/python" -m twine check --strict "$scratch"/dist/*

python3 -m venv "$scratch/wheel"
bin=$scratch/wheel/bin
"$bin/python" -m pip install --quiet --upgrade pip
"$bin/python" -m pip install --quiet --progress-bar off \
    -c requirements/constraints.txt "$(echo "$scratch"/dist/*.whl)[onedl]"
"$bin/python" -m pip check

away=$scratch/away
mkdir -p "$away"
cd "$away"
export PATH=$bin:$PATH OMP_NUM_THREADS=1 DATA_ROOT=$away/photos
python - "$clone" <<'PY'
import pathlib, sys
import numpy as np
from PIL import Image
import cmae_mm
origin = pathlib.Path(cmae_mm.__file__).resolve()
assert pathlib.Path(sys.argv[1]).resolve() not in origin.parents, origin
rng = np.random.default_rng(0)
for name in 'ab':
    folder = pathlib.Path('photos/train', name)
    folder.mkdir(parents=True)
    for i in range(4):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 96)).save(folder / f'{i}.jpg')
PY

short=(train_cfg.max_iters=2 train_dataloader.batch_size=4
    train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
    default_hooks.logger.interval=1)
cmae --help >/dev/null
cmae train cmae_vit-mini_tiles --work-dir out --cfg-options "${short[@]}" \
    >train.log 2>&1 || { tail -30 train.log >&2; exit 1; }
grep -q 'Iter(train) \[2/2\]' train.log
cmae export cmae_vit-mini_tiles out/iter_2.pth encoder.safetensors --to timm
test -s encoder.safetensors

# The ecosystem's own command, on a packaged config.
python -m pip install --quiet onedl-mim 'setuptools<82'
root=$(python -c 'import cmae_mm.dependencies as p; print(p.packaged_root())' | tail -1)
bash "$clone/.ci/try_mim.sh" "$root" "$away/mim"
echo "== The wheel works away from the clone"
