"""What docs/adopt.md shows: its configs train, its table is complete."""
import importlib
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, build, model_cfg, require_dense, write_images
from mmpretrain import registry

PAGE = (ROOT / 'docs/adopt.md').read_text()
# Files of such a project, by the first line of their blocks.
BLOCKS = re.findall(r'^```python\n# (\S+\.py)\n(.*?)^```', PAGE, re.M | re.S)
# The table's rows, and the registries whose classes they list.
ROWS = {
    'models': ['MODELS'],
    'data sets, samplers': ['DATASETS', 'DATA_SAMPLERS'],
    'transforms': ['TRANSFORMS'],
    'hooks': ['HOOKS'],
    'runner, loops': ['RUNNERS', 'LOOPS'],
    'visualisation back ends': ['VISBACKENDS'],
    'optimizer wrappers, their constructors':
    ['OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS'],
}
DENSE = [('mmdet', 'cmae_mm.dense.detection'),
         ('mmseg', 'cmae_mm.dense.segmentation')]

# Smaller and shorter, the same otherwise.
TINY = dict(
    train_cfg=dict(max_epochs=1),
    train_dataloader=dict(batch_size=2, num_workers=0),
    model=dict(
        backbone=dict(arch=dict(
            _delete_=True, embed_dims=24, num_layers=1, num_heads=2,
            feedforward_channels=48)),
        neck=dict(
            pixel_decoder=dict(
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
            feature_decoder=dict(
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
            projector=dict(hid_channels=16, out_channels=8)),
        head=dict(contrastive=dict(predictor=dict(hid_channels=16)))))
# What the classifier's config inherits is of full size, on ImageNet.
SMALL_CLASSIFIER = """
model['backbone'].update(arch='mini', img_size=32, patch_size=8)
model['head'] = dict(num_classes=2, in_channels=128)
model['data_preprocessor'] = data_preprocessor = dict(num_classes=2)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='CustomDataset', data_root='data/images',
                 pipeline=[dict(type='LoadImageFromFile'),
                           dict(type='Resize', scale=(32, 32)),
                           dict(type='PackInputs')]))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
param_scheduler = []
train_cfg = dict(max_epochs=1)
"""
# A train.py as such a project has it.
TRAIN = f"""
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

for name in ('cmae', 'new_style', 'own_scope', 'finetune'):
    DefaultScope._instance_dict.clear()
    cfg = Config.fromfile(f'configs/{{name}}.py')
    if name != 'finetune':
        cfg.merge_from_dict({TINY!r})
    cfg.work_dir = cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner.train()
    data = runner.train_dataloader.dataset
    print(name, 'trained', type(runner.model).__name__, type(data).__name__,
          f'{{len(data)}} images, {{runner.iter}} steps')
    if name != 'finetune':
        assert runner.model.target.steps == runner.iter, name
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The page's project outside the clone; what its training said."""
    root = tmp_path_factory.mktemp('project')
    assert ROOT not in root.parents
    for name, text in BLOCKS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with (root / 'configs/finetune.py').open('a') as file:
        file.write(SMALL_CLASSIFIER)
    (root / 'train.py').write_text(TRAIN)
    for name in 'ab':
        write_images(root / 'data/images' / name, 2, size=64)
    encoder = build(model_cfg(**{
        'backbone.arch': 'mini', 'backbone.patch_size': 8}))
    torch.save(dict(state_dict=encoder.state_dict()), root / 'cmae.pth')
    done = subprocess.run(
        [sys.executable, 'train.py'], cwd=root, capture_output=True,
        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1',
                        'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stdout + done.stderr


def test_the_page_shows_each_way():
    text = dict(BLOCKS)
    assert list(text) == [
        'configs/finetune.py', 'configs/runtime.py', 'configs/cmae.py',
        'configs/new_style.py', 'shapes/registry.py', 'shapes/__init__.py',
        'configs/own_scope.py']
    assert 'read_base()' in text['configs/new_style.py']
    assert "default_scope = 'shapes'" in text['configs/own_scope.py']


@pytest.mark.parametrize('said', [
    'cmae trained CMAE PretrainingDataset 4 images, 2 steps',
    'new_style trained CMAE PretrainingDataset 4 images, 2 steps',
    'own_scope trained CMAE EverySecond 2 images, 1 steps',
    'finetune trained ImageClassifier CustomDataset 4 images, 2 steps',
])
def test_the_pages_configs_train_in_another_project(trained, said):
    assert said in trained[1]


def test_the_encoder_starts_from_the_checkpoint(trained):
    root, _ = trained
    after, before = (
        torch.load(root / name, weights_only=False)['state_dict']
        for name in ('finetune/epoch_1.pth', 'cmae.pth'))
    name = 'backbone.patch_embed.projection.weight'
    # layer decay leaves the first layer nearly as it was
    torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=0)


def row(label):
    """Give the names in backticks of a row of the table."""
    found = re.findall(rf'^\| {re.escape(label)} \| (.*) \|$', PAGE, re.M)
    assert len(found) == 1, f'the page has {len(found)} rows {label!r}'
    return re.findall(r'`(\w+)`', found[0])


def registered(registries, room='cmae_mm.'):
    """Give the names of our classes that registries hold themselves."""
    return [
        name for one in registries for name, kind in one.module_dict.items()
        if kind.__module__.startswith(room)
    ]


@pytest.mark.parametrize('label', ROWS)
def test_a_row_of_the_page_is_what_is_registered(label):
    ours = registered(getattr(registry, name) for name in ROWS[label])
    assert sorted(row(label)) == sorted(ours)


def test_the_page_has_a_row_for_every_registry_of_ours():
    listed = {name for names in ROWS.values() for name in names}
    others = [
        one for key, one in vars(registry).items()
        if key.isupper() and key not in listed
    ]
    assert len(others) > 5
    assert not registered(others)


@pytest.mark.ops
@pytest.mark.parametrize('library, room', DENSE)
def test_a_dense_row_of_the_page_is_what_its_room_registers(library, room):
    require_dense(library)
    importlib.import_module(room)
    theirs = vars(importlib.import_module(f'{library}.registry'))
    ours = registered((one for key, one in theirs.items() if key.isupper()),
                      room)
    assert sorted(row(f'`{room}`')) == sorted(ours)
