"""The tutorial's commands, each of them, on a few small images."""
import re
import shlex
import textwrap

import numpy as np
import pytest
import tifffile
from helpers import DEEP, ROOT, run_commands

from cmae_mm.config import load_config

PAGE = (ROOT / 'docs/own-data.md').read_text()
BLOCKS = re.findall(r'^```(bash|python)\n(.*?)^```', PAGE, re.M | re.S)
LARGE_VIT = ("timm.create_model('vit_small_patch16_224.dino', "
             'pretrained=True, num_classes=0)')
SMALL_VIT = ('timm.models.VisionTransformer(img_size=64, patch_size=8, '
             'embed_dim=128, depth=4, num_heads=4, num_classes=0)')
# What the fine-tuned model is on the page, made as small as the others here.
TUNED = [
    'model.backbone.arch=mini',
    'model.backbone.img_size=64',
    'model.backbone.patch_size=8',
    'model.head.in_channels=128',
    'train_dataloader.dataset.pipeline.2.scale=64',
    'val_dataloader.dataset.pipeline.1.scale=64',
    'val_dataloader.dataset.pipeline.2.crop_size=64',
    'train_dataloader.batch_size=8',
    'val_dataloader.batch_size=8',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.persistent_workers=False',
    'train_cfg.max_epochs=1',
    'param_scheduler=[]',
]


def small(text):
    """Make the page's long runs short ones."""
    text = re.sub(r'--model vit-s', '--model mini', text)
    text = re.sub(r'--epochs \d+', '--epochs 1', text)
    text = re.sub(r'--batch-size \d+', '--batch-size 8', text)
    text = re.sub(r'epoch_\d+\.pth', 'epoch_1.pth', text)
    return text.replace(LARGE_VIT, SMALL_VIT)


def command_lines():
    """Give the page's command lines, without `cmae`, made small."""
    lines = []
    for kind, block in BLOCKS:
        if kind == 'bash':
            joined = re.sub(r'\\\n\s*', ' ', block)
            lines += [shlex.split(small(line)) for line in joined.splitlines()]
    for line in lines:
        assert line.pop(line.index('cmae')) == 'cmae'
        if line[0] == 'DATA_ROOT=scans':
            line.pop(0)
        if line[0] in ('pretrain', 'knn', 'embed', 'stats', 'nearest'):
            line += ['--num-workers', '0']
        if line[0] == 'train':
            line += TUNED
    return lines


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    """Grey images of 12 bits in class folders; the working folder."""
    root = tmp_path_factory.mktemp('page')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 3)):
        for name in 'ab':
            (root / f'scans/{split}/{name}').mkdir(parents=True)
            for i in range(count):
                coarse = rng.integers(0, 4096, (9, 9), dtype=np.uint16)
                tifffile.imwrite(root / f'scans/{split}/{name}/{i}.tif',
                                 np.kron(coarse, np.ones((8, 8), np.uint16)))
    return root


def test_every_command_of_the_page_runs(scans, monkeypatch):
    pytest.importorskip('timm')
    monkeypatch.chdir(scans)
    python = [textwrap.dedent(small(block)) for kind, block in BLOCKS
              if kind == 'python']
    for code in [p for p in python if 'timm' in p]:
        assert SMALL_VIT in code
        exec(code, {})
    lines = command_lines()
    assert len(lines) >= 14
    results = run_commands(*lines, cwd=scans, DATA_ROOT='scans')
    for line, (code, output) in zip(lines, results):
        assert code == 0, (line, output[-3000:])
    for code in [p for p in python if 'timm' not in p]:
        exec(code, {})
    said = {' '.join(line[:2]): output
            for line, (_, output) in zip(lines, results)}
    assert f'1 of {DEEP}' in said['stats scans']
    assert 'made for 1 channel(s) of the mean over 3' in said['pretrain scans']
    for name in ('views.png', 'reconstruction.png',
                 'nearest.png', 'features.npz', 'backbone.safetensors',
                 'work_dirs/tuned/epoch_1.pth'):
        assert (scans / name).is_file(), name


def test_every_setting_on_the_page_exists():
    """Together they make a config, on two recipes."""
    page = PAGE[PAGE.index('## 2.'):]
    named = re.findall(r'`((?:[\w.-]+=\S+ ?)+)`', page)
    options = [pair for text in named for pair in text.split()
               if not pair.startswith(('num_classes', 'in_chans'))]
    assert len(options) >= 10
    for pair in options:
        cfg = load_config('cmae_vit-s_300e', [pair])
        key, _, value = pair.partition('=')
        assert key.split('.')[0] in cfg
    # settings of a class are arguments that it has
    both = [p for p in options if 'loss_style' not in p
            and 'contrastive' not in p and not p.startswith('model.')]
    from mmpretrain.registry import MODELS, TRANSFORMS
    for pair in both:
        cfg = load_config('cmae_vit-s_300e', [
            pair, *(['data_preprocessor.canvas_size=None'])
            * ('size' in pair)])
        MODELS.build(dict(cfg.data_preprocessor))
        TRANSFORMS.build(dict(cfg.train_dataloader.dataset.pipeline[0]))
