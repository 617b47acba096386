"""docs/adopt.md: its files in a project outside the clone, trained there."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, build, model_cfg, write_images

PAGE = (ROOT / 'docs/adopt.md').read_text()
FILES = {
    found[1]: block
    for block in re.findall(r'^```python\n(.*?)^```', PAGE, re.M | re.S)
    if (found := re.match(r'# (\S+\.py)\n', block))
}
CONFIGS = sorted(
    name for name in FILES
    if name.startswith('configs/') and 'model = ' in FILES[name]
    or '_base_ = ' in FILES[name])
# Sizes of the page's networks, images and batches, made small; names stay.
SMALL = [
    (r"arch='base', img_size=224, patch_size=16",
     "arch='mini', img_size=32, patch_size=8"),
    (r'decoder_embed_dim=512, decoder_depth=\d, decoder_num_heads=16',
     'decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2'),
    ('size=224, max_shift=32, canvas_size=256',
     'size=32, max_shift=8, canvas_size=40'),
    (r'size=256\)', 'size=40)'),
    (r'batch_size=64, (num_workers=4,)?', 'batch_size=2, num_workers=0, '),
    (r'max_iters=100_000', 'max_iters=2'),
]
# What the page's configs inherit is of full size.
SHRINK = {
    'configs/finetune.py': '''
model['backbone'].update(arch='mini', img_size=32, patch_size=8)
model['head'] = dict(num_classes=2, in_channels=128)
model['data_preprocessor'] = dict(num_classes=2)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='CustomDataset', data_root='photos',
                 pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
param_scheduler = []
train_cfg = dict(by_epoch=True, max_epochs=1)
''',
    'configs/pretrain.py': '''
model = dict(
    backbone=dict(arch='mini', img_size=32, patch_size=8),
    neck=dict(
        pixel_decoder=dict(decoder_embed_dim=16, decoder_depth=1,
                           decoder_num_heads=2),
        feature_decoder=dict(decoder_embed_dim=16, decoder_depth=1,
                             decoder_num_heads=2)))
data_preprocessor = dict(size=32, max_shift=8, canvas_size=40)
train_dataloader['persistent_workers'] = False
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadCanvas', size=40),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed'))]
param_scheduler = []
train_cfg = dict(max_epochs=1)
''',
}
# The page's own training script on each config, in one process, which
# imports the libraries once.
DRIVER = '''
import json, runpy, sys
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
done = {}
for config in json.load(sys.stdin):
    DefaultScope._instance_dict.clear()
    sys.argv = ['train.py', config, f'out/{config[8:-3]}']
    runner = runpy.run_path('train.py')['runner']
    model = getattr(runner.model, 'module', runner.model)
    done[config] = dict(
        runner=type(runner).__name__, steps=runner.iter,
        model=type(model).__module__, images=len(
            runner.train_dataloader.dataset))
print(json.dumps(done))
'''


def small(text):
    for pattern, replacement in SMALL:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """Write the page's files, small, and a checkpoint; what training said."""
    root = tmp_path_factory.mktemp('project')
    assert ROOT not in root.parents
    for name, block in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(small(block) + SHRINK.get(name, ''))
    for name in 'ab':
        write_images(root / 'photos' / name, 4)
    encoder = build(model_cfg(**{
        'backbone.arch': 'mini', 'backbone.patch_size': 8}))
    torch.save(dict(state_dict=encoder.state_dict()), root / 'cmae.pth')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1',
                   'PYTHONPATH': f'{root}{os.pathsep}{ROOT}'}

    def python(*arguments, **kwargs):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=root, env=environment,
            capture_output=True, text=True, timeout=300, **kwargs)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr, done.stdout

    command = re.search(r'^python -c "(.*)"$', PAGE, re.M)[1]
    said, out = python('-c', f'{command}\n{DRIVER}',
                       input=json.dumps(CONFIGS))
    return root, said, json.loads(out.splitlines()[-1])


def test_the_page_shows_every_way():
    assert CONFIGS == ['configs/finetune.py', 'configs/new_pretrain.py',
                       'configs/own_scope.py', 'configs/pretrain.py']
    assert 'read_base()' in FILES['configs/new_pretrain.py']
    assert "default_scope = 'shapes'" in FILES['configs/own_scope.py']


@pytest.mark.parametrize('config,runner,images', [
    ('configs/finetune.py', 'Runner', 8),
    ('configs/pretrain.py', 'ResumableRunner', 8),
    ('configs/new_pretrain.py', 'Runner', 8),
    ('configs/own_scope.py', 'Runner', 4),
])
def test_a_config_of_the_page_trains_outside_the_clone(
        project, config, runner, images):
    root, said, trained = project
    one = trained[config]
    assert one['runner'] == runner and one['images'] == images
    assert one['steps'] == (2 if 'max_iters' in FILES[config] or
                            config == 'configs/new_pretrain.py' else 4)
    assert list((root / 'out' / config[8:-3]).glob('*.pth'))


def test_the_encoder_of_the_page_is_loaded_whole(project):
    root, said, _ = project
    assert re.search(r'cmae\.pth.*every key', said), said[-2000:]
    trained = torch.load(root / 'out/finetune/epoch_1.pth',
                         weights_only=False)['state_dict']
    start = torch.load(root / 'cmae.pth', weights_only=True)['state_dict']
    # fixed in pre-training, and a bias that layer decay hardly moves
    name = 'backbone.patch_embed.projection.weight'
    torch.testing.assert_close(trained[name], start[name], atol=1e-3, rtol=0)
