"""Two processes draw differently and train the same: each kind of config."""
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, require_dense
from shrunken import shrunken

KINDS = dict(
    pretraining='cmae_vit-b_300e',
    mae='mae_vit-b_300e',
    iterations='coco_mini/cmae_vit-mini_coco',
    cpu_views='quickstart/ablations/cmae_vit-mini_colour-both_tiles',
    finetuning='finetune/vit-b_pt300e_100e_in1k',
    linear='linear/vit-b_90e_in1k',
    detection='detection/vitdet-mini_mask-rcnn_coco',
    segmentation='segmentation/upernet-mini_coco')
DENSE = dict(detection='mmdet', segmentation='mmseg')
STEPS = 3


def _has_dense(name: str) -> bool:
    try:
        require_dense(DENSE[name])
    except pytest.skip.Exception:
        return False
    return True


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Results of both processes by kind, from a single start."""
    folder = tmp_path_factory.mktemp('ranks')
    for kind, name in KINDS.items():
        if kind in DENSE and not _has_dense(kind):
            continue
        cfg = shrunken(name, folder / kind, folder / f'work_{kind}', images=8)
        cfg.optim_wrapper.type = 'mmpretrain.AutoAmpOptimWrapper'
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=STEPS)
        cfg.param_scheduler = []
        if cfg.model.type != 'CMAE':
            cfg.custom_hooks = []
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1000)
        cfg.dump(folder / f'{kind}.py')
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]),
        OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node', '2', str(ROOT / 'tests/run_ranks.py'),
         str(folder)],
        capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return {
        kind: [
            json.loads((folder / f'{kind}.{rank}.json').read_text())
            for rank in (0, 1)
        ]
        for kind in KINDS if (folder / f'{kind}.py').exists()
    }


@pytest.fixture
def pair(ranks, request):
    if request.param not in ranks:
        pytest.skip(f'{request.param} needs mmcv with compiled operators')
    return ranks[request.param]


@pytest.mark.parametrize('pair', KINDS, indirect=True)
def test_both_train_the_same_model_on_different_images(pair):
    first, second = pair
    assert first['steps'] == second['steps'] == STEPS
    assert first['start'] == second['start']
    assert first['parameters'] == second['parameters']
    assert first.get('target') == second.get('target')
    if 'target' in first:
        assert first['target_steps'] == second['target_steps'] == STEPS
    # Within the first epoch, of 8 images, none is seen by both.
    assert len(first['images']) == len(second['images']) == 2 * STEPS
    assert not set(first['images'][:4]) & set(second['images'][:4])


@pytest.mark.parametrize('pair', KINDS, indirect=True)
def test_no_two_steps_or_processes_draw_from_the_same_state(pair):
    states = pair[0]['states'] + pair[1]['states']
    assert len(set(states)) == 2 * STEPS


@pytest.mark.parametrize(
    'pair', ['pretraining', 'mae', 'iterations', 'cpu_views'], indirect=True)
def test_masks_differ_between_steps_and_processes(pair):
    masks = pair[0]['masks'] + pair[1]['masks']
    assert len(masks) == len(set(masks)) == 2 * STEPS


@pytest.mark.parametrize('pair', ['finetuning'], indirect=True)
def test_mixup_differs_between_processes(pair):
    first, second = (rank['mixups'] for rank in pair)
    assert len(first) == len(second) == STEPS
    assert all(a[1] != b[1] for a, b in zip(first, second))
