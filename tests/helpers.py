"""Small real models, image folders and commands for the tests."""
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from packaging.version import Version
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Material that developers have beside the project and users have not.
SHARED = Path(os.environ.get('CMAE_SHARED', ROOT.parent / 'shared'))
COCO = SHARED / 'data/coco_mini'
needs_coco = pytest.mark.skipif(
    not COCO.is_dir(), reason='the COCO images are not here')

TORCH = Version(torch.__version__).release
# In what CPUs autocast; of an old torch also on GPUs in float16.
HALF = (torch.bfloat16, torch.float16) if TORCH >= (2, 3) else (
    torch.bfloat16, )


# What holds 16-bit images.
DEEP = 'uint16' if TORCH >= (2, 3) else 'float32'


def needs_torch(major: int, minor: int, what: str):
    """Skip a test of what only newer versions of torch have."""
    return pytest.mark.skipif(
        (major, minor) > TORCH,
        reason=f'{what} needs torch {major}.{minor} or newer')


QUICK = 'configs/quickstart/cmae_vit-mini_tiles.py'
SMALL = [
    '--cfg-options', 'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False', 'train_cfg.max_iters=2',
    'default_hooks.logger.interval=1'
]
CLASSIFIER = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', num_classes=2, mean=[120.] * 3,
        std=[60.] * 3),
    backbone=dict(
        type='TransferViT',
        arch=dict(embed_dims=48, num_layers=2, num_heads=4,
                  feedforward_channels=96),
        img_size=32, patch_size=4, final_norm=False, out_type='avg_featmap'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=48))


@contextlib.contextmanager
def small_disk(folder: Path, size: int, options: str = ''):
    """Mount a disk of this size; skip the test if mounting is not allowed."""
    disk = folder / 'disk'
    disk.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}{options}', 'none', disk],
        capture_output=True)
    if mounted.returncode:
        pytest.skip('a small disk cannot be mounted here')
    try:
        yield disk
    finally:
        subprocess.run(['umount', '-l', disk], check=True)
        disk.rmdir()


def free_port() -> int:
    """Give a port that is free here, for ranks to meet at."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def require_dense(name: str) -> None:
    """Skip a module of tests without a library or mmcv's operators."""
    pytest.importorskip('mmcv.ops', reason='mmcv has no compiled operators',
                        exc_type=ImportError)
    pytest.importorskip(name, reason=f'{name} is not installed')


def model_cfg(width=48,
              depth=2,
              img_size=32,
              patch_size=4,
              contrastive=True,
              **overrides) -> Config:
    """Give the config of a small CMAE; overrides are dotted keys."""
    decoder = dict(
        decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    cfg = Config(
        dict(
            model=dict(
                type='CMAE',
                backbone=dict(
                    type='CMAEViT',
                    arch=dict(
                        embed_dims=width,
                        num_layers=depth,
                        num_heads=4,
                        feedforward_channels=2 * width),
                    img_size=img_size,
                    patch_size=patch_size),
                neck=dict(
                    pixel_decoder=decoder,
                    feature_decoder=decoder,
                    projector=dict(hid_channels=24, out_channels=16)),
                head=dict(
                    contrastive=dict(predictor=dict(
                        hid_channels=24)) if contrastive else None))))
    cfg.merge_from_dict({f'model.{k}': v for k, v in overrides.items()})
    return cfg.model


def build(cfg) -> torch.nn.Module:
    """Build and initialise a model, in training mode."""
    model = MODELS.build(cfg)
    model.init_weights()
    return model.train()


def write_images(folder: Path, count: int, size: int = 48, seed: int = 0):
    """Write JPEG images with some structure in them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size)).save(
            folder / f'{i:03d}.jpg')


_number = itertools.count()


def runner_cfg(data_root, work_dir, model=None, **overrides) -> Config:
    """Give a config that trains a small model on image files."""
    cfg = Config.fromfile(ROOT / 'configs/quickstart/cmae_vit-mini_tiles.py')
    # yapf takes longer than the training; fromfile's argument does nothing.
    vars(cfg)['_format_python_code'] = False
    cfg.merge_from_dict({
        'train_dataloader.dataset.data_root': str(data_root),
        'train_dataloader.dataset.pipeline.0.size': 40,
        'data_preprocessor.size': 32,
        'data_preprocessor.canvas_size': 40,
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_cfg.max_iters': 2,
        'default_hooks.logger.interval': 1,
    })
    cfg.model = model or model_cfg()
    cfg.param_scheduler = []
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    # mmengine keeps logs by name and second: each run shall have its own.
    cfg.experiment_name = f'run{next(_number)}'
    cfg.merge_from_dict(overrides)
    return cfg


def make_views_in_workers(cfg, transform: dict) -> None:
    """Change a `runner_cfg` to views made on the CPU, then transformed."""
    cpu = Config.fromfile(
        ROOT / 'configs/_base_/datasets/imagenet_pretrain_cpu.py')
    *steps, pack = cpu.train_pipeline
    steps[2].scale = 40
    steps[4].update(size=32, max_shift=8, canvas_size=40)
    cfg.train_dataloader.dataset.pipeline = [*steps, transform, pack]
    cfg.data_preprocessor = dict(
        cpu.data_preprocessor, mean=cfg.data_preprocessor.mean,
        std=cfg.data_preprocessor.std)


def run_tool(*command, **env):
    """Run a command from the project's folder; give what it printed."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        env={
            **os.environ, 'OMP_NUM_THREADS': '1',
            # scripts take the `python` that runs the tests
            'PATH': os.pathsep.join(
                [os.path.dirname(sys.executable), os.environ['PATH']]),
            **env
        },
        capture_output=True,
        text=True,
        timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


AT_EXIT = """
import atexit, os, pathlib
def note():
    threads = pathlib.Path('/proc/self/task').glob('*/comm')
    names = ' '.join(sorted(t.read_text().strip() for t in threads))
    folder = pathlib.Path(__file__).parent
    (folder / f'rank{os.environ["RANK"]}.txt').write_text(names)
if 'RANK' in os.environ:
    atexit.register(note)
"""


def note_threads(folder):
    """Let ranks note their threads last of all; give their environment."""
    (folder / 'sitecustomize.py').write_text(AT_EXIT)
    return dict(PYTHONPATH=str(folder))


def check_threads(folder, ranks=2):
    """Check that no gloo thread is left, which could abort the rank."""
    left = [(folder / f'rank{r}.txt').read_text() for r in range(ranks)]
    assert not any('gloo' in names for names in left), left


def run_commands(*lines, cwd=ROOT, **env):
    """Run command lines of `cmae` in one process, which imports once.

    Gives the exit status and the output of each.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/run_commands.py')],
        input=json.dumps([[str(word) for word in line] for line in lines]),
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
             **env},
        capture_output=True,
        text=True,
        timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]
