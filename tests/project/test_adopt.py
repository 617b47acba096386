"""docs/adopt.md: its configs train, its table is complete."""
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
    'weight initialisers': ['WEIGHT_INITIALIZERS'],
    'visualisation back ends': ['VISBACKENDS'],
    'optimizer wrappers, their constructors':
    ['OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS'],
}
DENSE = [('mmdet', 'cmae_mm.dense.detection'),
         ('mmseg', 'cmae_mm.dense.segmentation')]

# Smaller and shorter, the same otherwise.
TINY = dict(
    train_cfg=dict(max_epochs=1),
    train_dataloader=dict(
        batch_size=2, num_workers=0, persistent_workers=False),
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
# What the classifiers' configs inherit is of full size, on ImageNet.
PIPELINE = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)),
    dict(type='PackInputs')]
LOADER = dict(batch_size=2, num_workers=0, persistent_workers=False,
              dataset=dict(pipeline=PIPELINE))
SMALL_CLASSIFIER = dict(
    model=dict(backbone=dict(arch='mini', img_size=32, patch_size=8),
               head=dict(num_classes=2, in_channels=128)),
    data_preprocessor=dict(num_classes=2), param_scheduler=[],
    train_cfg=dict(max_epochs=1), train_dataloader=LOADER)
SMALL = dict(
    finetune=dict(
        SMALL_CLASSIFIER, val_dataloader=None, val_cfg=None,
        val_evaluator=None, test_dataloader=None, test_cfg=None,
        test_evaluator=None, train_dataloader=dict(LOADER, dataset=dict(
            _delete_=True, type='CustomDataset', pipeline=PIPELINE,
            data_root='data/images/train'))),
    finetune_own=dict(
        SMALL_CLASSIFIER, val_dataloader=LOADER, test_dataloader=LOADER))
# A train.py as such a project has it, with mmengine's own runner.
TRAIN = f"""
import torch
from mmengine.config import Config
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

if not torch.cuda.is_available():  # which the wrapper asks for, and no more
    amp_optimizer_wrapper.is_cuda_available = lambda: True
SMALL = {SMALL!r}
for name in ('cmae', 'new_style', 'own_scope', 'plain', *SMALL):
    DefaultScope._instance_dict.clear()
    cfg = Config.fromfile(f'configs/{{name}}.py')
    cfg.merge_from_dict(SMALL.get(name, {TINY!r}))
    cfg.work_dir = cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner.train()
    data = runner.train_dataloader.dataset
    print(name, 'trained', type(runner.model).__name__, type(data).__name__,
          f'{{len(data)}} images, {{runner.iter}} steps')
    if name not in SMALL:
        assert runner.model.target.steps == runner.iter, name
    runner.cfg.dump(f'{{name}}/whole.py')
"""
# Another process, with what reads a trained classifier.
INFER = """
from mmpretrain import (FeatureExtractor, ImageClassificationInferencer,
                        get_model)
config, checkpoint = 'finetune_own/whole.py', 'finetune_own/epoch_1.pth'
image = 'data/images/train/a/000.jpg'
found = ImageClassificationInferencer(
    config, pretrained=checkpoint, device='cpu')(image)[0]
print('class', found['pred_class'], len(found['pred_scores']))
feature = FeatureExtractor(
    config, pretrained=checkpoint, device='cpu')(image)[0][0]
print('feature', tuple(feature.shape))
model = get_model(config, pretrained=checkpoint, device='cpu')
print('model', type(model.backbone).__name__)
"""
# mmpretrain's own command.
THEIR_TRAIN = """
import pathlib, runpy, sys
import mmpretrain
tools = pathlib.Path(mmpretrain.__file__).parent / '.mim/tools'
sys.argv = ['train.py', 'cmae/whole.py', '--work-dir', 'theirs']
runpy.run_path(str(tools / 'train.py'), run_name='__main__')
"""


def run(root, code):
    """Run Python in a project's folder; give the output."""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True,
        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1',
                        'PYTHONPATH': os.pathsep.join([str(root), str(ROOT)])})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The page's project outside the clone; what its training said."""
    root = tmp_path_factory.mktemp('project')
    assert ROOT not in root.parents
    for name, text in BLOCKS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for split in ('train', 'val'):
        for name in 'ab':
            write_images(root / 'data/images' / split / name, 2, size=64)
    encoder = build(model_cfg(**{
        'backbone.arch': 'mini', 'backbone.patch_size': 8}))
    torch.save(dict(state_dict=encoder.state_dict()), root / 'cmae.pth')
    return root, run(root, TRAIN)


def test_the_page_shows_each_way():
    text = dict(BLOCKS)
    assert list(text) == [
        'configs/finetune.py', 'configs/finetune_own.py', 'configs/detect.py',
        'configs/segment.py', 'configs/runtime.py', 'configs/cmae.py',
        'configs/new_style.py', 'shapes/registry.py', 'shapes/__init__.py',
        'configs/own_scope.py', 'configs/plain.py']
    assert 'read_base()' in text['configs/new_style.py']
    assert "default_scope = 'shapes'" in text['configs/own_scope.py']


@pytest.mark.parametrize('said', [
    'cmae trained CMAE PretrainingDataset 4 images, 2 steps',
    'new_style trained CMAE PretrainingDataset 4 images, 2 steps',
    'own_scope trained CMAE EverySecond 2 images, 1 steps',
    'plain trained CMAE PretrainingDataset 4 images, 2 steps',
    'finetune trained ImageClassifier CustomDataset 4 images, 2 steps',
    'finetune_own trained ImageClassifier CustomDataset 4 images, 2 steps',
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


def test_the_average_of_weights_is_mmengines(trained):
    """Their EMAHook averages online and target branch, and saves both."""
    saved = torch.load(trained[0] / 'plain/epoch_1.pth', weights_only=False)
    state, average = saved['state_dict'], saved['ema_state_dict']
    name = 'target.encoder.patch_embed.projection.weight'
    assert f'module.{name}' in average or name in average
    assert int(average['steps']) == 2
    assert all(v.isfinite().all() for v in state.values())


def test_their_readers_take_the_classifier_in_a_new_process(trained):
    said = run(trained[0], INFER)
    assert 'class a 2' in said or 'class b 2' in said
    assert 'feature (128,)' in said and 'model TransferViT' in said


def test_mmpretrains_own_command_pre_trains(trained):
    said = run(trained[0], THEIR_TRAIN)
    assert 'Epoch(train) [1][2/2]' in said
    assert (trained[0] / 'theirs/epoch_1.pth').is_file()


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
def test_rows_match_the_registries(label):
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
def test_dense_rows_match_the_registries(library, room):
    require_dense(library)
    importlib.import_module(room)
    theirs = vars(importlib.import_module(f'{library}.registry'))
    ours = registered((one for key, one in theirs.items() if key.isupper()),
                      room)
    assert sorted(row(f'`{room}`')) == sorted(ours)
