#!/usr/bin/env bash
# Trains two steps of a config by the ecosystem's own command, mim, with the
# python and mim on the path.
# Usage: .ci/try_mim.sh ROOT FOLDER    ROOT has configs/, FOLDER is made
set -euo pipefail
root=$1
mkdir -p "$2"
cd "$2"
export OMP_NUM_THREADS=1 DATA_ROOT=$PWD/photos
python - <<'PY'
import pathlib
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
pathlib.Path('photos').mkdir(exist_ok=True)
for i in range(8):
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 96)).save(f'photos/{i}.jpg')
PY
mim train mmpretrain "$root/configs/quickstart/cmae_vit-mini_tiles.py" \
    --work-dir out --gpus 0 --cfg-options train_cfg.max_iters=2 \
    train_dataloader.batch_size=4 train_dataloader.num_workers=0 \
    train_dataloader.persistent_workers=False \
    default_hooks.logger.interval=1 >mim.log 2>&1 || {
    tail -30 mim.log >&2
    exit 1
}
grep -q 'Iter(train).*2/2\]' mim.log
# The config's own runner, not mmengine's: it keeps the config off the console.
grep -q 'Config:' out/*/*.log
if grep -q 'Config:' mim.log; then
    echo "mim did not take the config's runner" >&2
    exit 1
fi
test -f out/iter_2.pth
echo "== mim trains a config"
