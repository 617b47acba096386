"""mmdetection's and mmsegmentation's own tools, in projects of their own.

The configs are those of docs/adopt.md, made smaller.
"""
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from dense_data import write_coco
from helpers import ROOT, require_dense, write_images
from PIL import Image

BLOCKS = dict(re.findall(
    r'^```python\n# (configs/(?:detect|segment)\.py)\n(.*?)^```',
    (ROOT / 'docs/adopt.md').read_text(), re.M | re.S))
ARCH = dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=3,
            feedforward_channels=384)
# A scope of the project's own, beside the library's.
SCOPE = """
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import Registry
from {library}.datasets import {parent}

DATASETS = Registry('dataset', parent=ROOT, scope='shapes')


@DATASETS.register_module()
class Shapes({parent}):
    METAINFO = dict(classes=('cat', 'dog'), palette=[(0, 0, 0), (9, 9, 9)])
"""
DETECTION = f"""
_base_ = './detect.py'
custom_imports = dict(imports=['cmae_mm', 'shapes'])
model = dict(
    backbone=dict(
        arch=dict({ARCH}, global_attn_indexes=[1, 3]), img_size=128,
        window_size=4),
    neck=dict(in_channels=96, out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32, num_classes=2),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=2)))
load = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
test_pipeline = [*load, dict(
    type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, dataset=dict(
    type='shapes.Shapes', data_root='data/', pipeline=[
        *load[::2], load[1], dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs')]))
val_dataloader = dict(loader, dataset=dict(
    type='shapes.Shapes', data_root='data/', pipeline=test_pipeline))
for kind, one in (('train', train_dataloader), ('val', val_dataloader)):
    one['dataset'].update(
        ann_file=f'annotations/instances_{{kind}}2017.json',
        data_prefix=dict(img=f'images/{{kind}}2017/'))
del kind, one
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
SEGMENTATION = f"""
_base_ = './segment.py'
custom_imports = dict(imports=['cmae_mm', 'shapes'])
norm_cfg = dict(type='BN')
crop_size = (64, 64)
head = dict(num_classes=2, channels=16, norm_cfg=norm_cfg)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch=dict({ARCH}), img_size=64, out_indices=[0, 1, 2, 3]),
    neck=dict(in_channels=[96] * 4, out_channels=96),
    decode_head=dict(head, in_channels=[96] * 4),
    auxiliary_head=dict(head, in_channels=96),
    test_cfg=dict(crop_size=crop_size, stride=(48, 48)))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, batch_size=2, dataset=dict(
    type='shapes.Shapes', data_root='data',
    data_prefix=dict(img_path='images/train', seg_map_path='maps/train'),
    pipeline=[*load, dict(type='RandomCrop', crop_size=crop_size),
              dict(type='PackSegInputs')]))
val_dataloader = dict(loader, batch_size=1, dataset=dict(
    type='shapes.Shapes', data_root='data',
    data_prefix=dict(img_path='images/val', seg_map_path='maps/val'),
    pipeline=[*load, dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1),
                     checkpoint=dict(by_epoch=False, interval=4))
"""
# Weights after init_weights, then the library's tools one after the other, as
# in processes of their own.
DRIVER = """
import pathlib, runpy, sys
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
import {library}

tools = pathlib.Path({library}.__file__).parent / '.mim/tools'
cfg = Config.fromfile('configs/small.py')
init_default_scope('{library}')
from {library}.registry import MODELS
model = MODELS.build(cfg.model)
model.init_weights()
theirs = torch.load('cmae.pth')['state_dict']
own = model.backbone.state_dict()
same = [name for name, value in own.items()
        if torch.equal(value, theirs.get('backbone.' + name, value[:0]))]
print('equal tensors:', len(same), 'others:', *sorted(set(own) - set(same)))
for tool, *args in {calls!r}:
    sys.argv = [tool, 'configs/small.py', *args]
    print('running', *sys.argv)
    runpy.run_path(str(tools / tool), run_name='__main__')
print('all tools have run')
"""
DETECTORS = [
    ('train.py', '--work-dir', 'work'),
    ('test.py', 'work/epoch_1.pth', '--work-dir', 'test'),
    ('analysis_tools/get_flops.py', ),
    ('analysis_tools/browse_dataset.py', '--output-dir', 'browsed',
     '--not-show'),
]
SEGMENTORS = [
    ('train.py', '--work-dir', 'work'),
    ('test.py', 'work/iter_4.pth', '--work-dir', 'slide'),
    ('test.py', 'work/iter_4.pth', '--work-dir', 'whole', '--cfg-options',
     'model.test_cfg.mode=whole'),
    # The last: mmsegmentation 1.2.2 draws into an array that OpenCV rejects.
    ('analysis_tools/browse_dataset.py', '--output-dir', 'browsed',
     '--not-show'),
]
DETECT = """
from mmdet.apis import DetInferencer
inferencer = DetInferencer(
    'configs/small.py', 'work/epoch_1.pth', device='cpu')
found = inferencer('data/images/val2017/000.jpg', out_dir='out')
print('keys', *sorted(found['predictions'][0]))
"""
SEGMENT = """
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer(
    'configs/small.py', 'work/iter_4.pth', classes=('cat', 'dog'),
    palette=[[0, 0, 0], [9, 9, 9]], device='cpu')
found = inferencer('data/images/val/000.jpg', out_dir='out')
print('map', *found['predictions'].shape)
"""


def run(root, code):
    """Run Python in a project's folder; give the output."""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True,
        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1',
                        'PYTHONPATH': os.pathsep.join([str(root), str(ROOT)])})
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def write_project(root, library, name, small, encoder, parent):
    text = BLOCKS[name]
    if library == 'mmseg' and _is_onedl():
        import mmseg
        text = text.replace('mmseg::', f'{mmseg.__path__[0]}/.mim/configs/')
    (root / 'configs').mkdir()
    (root / name).write_text(text)
    (root / 'configs/small.py').write_text(small)
    (root / 'shapes.py').write_text(
        SCOPE.format(library=library, parent=parent))
    (root / 'cmae.pth').symlink_to(encoder)


def _is_onedl():
    from cmae_mm.dependencies import is_installed
    return is_installed('onedl-mmengine')


@pytest.mark.ops
def test_mmdetections_tools(mini_encoder, tmp_path):
    require_dense('mmdet')
    write_project(tmp_path, 'mmdet', 'configs/detect.py', DETECTION,
                  mini_encoder, 'CocoDataset')
    write_coco(tmp_path / 'data')
    said = run(tmp_path, DRIVER.format(library='mmdet', calls=DETECTORS))
    assert 'all tools have run' in said
    # Positions are resampled to the image, relative ones are new.
    equal, others = re.search(
        r'equal tensors: (\d+) others: (.*)', said).groups()
    assert int(equal) == 2 + 4 * 12
    assert {n.rpartition('.')[2] for n in others.split()} == {
        'pos_embed', 'rel_pos_h', 'rel_pos_w'}
    assert said.count('coco/bbox_mAP: ') >= 2 and 'Flops' in said
    assert len(list((tmp_path / 'browsed').rglob('*.jpg'))) == 4
    said = run(tmp_path, DETECT)
    assert 'keys bboxes labels masks scores' in said
    assert list((tmp_path / 'out/vis').iterdir())


@pytest.mark.ops
def test_mmsegmentations_tools(mini_encoder, tmp_path):
    require_dense('mmseg')
    write_project(tmp_path, 'mmseg', 'configs/segment.py', SEGMENTATION,
                  mini_encoder, 'BaseSegDataset')
    rng = np.random.default_rng(0)
    # validated on images that are smaller than the crop, and larger
    for split, sizes in (('train', (96, 96, 80, 64)), ('val', (48, 110))):
        maps = tmp_path / 'data/maps' / split
        maps.mkdir(parents=True)
        for number, size in enumerate(sizes):
            folder = tmp_path / 'data/images' / split
            write_images(tmp_path / 'made', 1, size=size, seed=number)
            folder.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'made/000.jpg').rename(folder / f'{number:03d}.jpg')
            Image.fromarray(rng.integers(0, 2, (size, size), np.uint8)).save(
                maps / f'{number:03d}.png')
    calls = SEGMENTORS if _is_onedl() else SEGMENTORS[:-1]
    said = run(tmp_path, DRIVER.format(library='mmseg', calls=calls))
    assert 'all tools have run' in said
    equal, others = re.search(
        r'equal tensors: (\d+) others: ?(.*)', said).groups()
    assert int(equal) == 3 + 4 * 12
    assert set(others.split()) <= {'pos_embed', 'ln1.weight', 'ln1.bias'}
    assert said.count('mIoU: ') >= 3
    assert not _is_onedl() or list((tmp_path / 'browsed').rglob('*.jpg'))
    assert 'map 48 48' in run(tmp_path, SEGMENT)
