"""Set-up of all tests, and shared data."""
import os
import re
import signal
from pathlib import Path

# Before torch is imported: OpenMP threads do not survive the forks of tests,
# and several trainings with several threads each slow each other down.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import torch
from helpers import ROOT, TORCH, build, write_images
from hypothesis import settings
from mmengine.config import Config
from mmengine.fileio.handlers import file_handlers
from mmengine.registry import DefaultScope, init_default_scope

import cmae_mm  # noqa: F401  registers the plugin

init_default_scope('mmpretrain')
# A busy machine is no failure.
settings.register_profile('cmae_mm', deadline=None)
settings.load_profile('cmae_mm')
# `nohup` and jobs in the background ignore these two, and so do processes that
# the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def _skip_what_torch_lacks():
    """Skip a test that ends in a sentence of ours about an old torch."""
    try:
        return (yield)
    except (ValueError, ImportError, RuntimeError) as error:
        needed = re.search(r'needs torch (\d+)\.(\d+)', str(error))
        if needed is None or (int(needed[1]), int(needed[2])) <= TORCH:
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    return (yield from _skip_what_torch_lacks())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    return (yield from _skip_what_torch_lacks())


@pytest.fixture(autouse=True)
def seed():
    """Make each test's random numbers its own."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope='session')
def image_root(tmp_path_factory) -> Path:
    """Two classes of 12 training images, and validation images."""
    root = tmp_path_factory.mktemp('images')
    for split, count in (('train', 12), ('val', 4)):
        for c in range(2):
            write_images(root / split / f'class{c}', count, seed=c)
    return root


def write_encoder(config, folder) -> Path:
    """Write a checkpoint of a config's model, as it is before training."""
    cfg = Config.fromfile(ROOT / f'configs/{config}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        model = build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'cmae.pth')
    return folder / 'cmae.pth'


@pytest.fixture(scope='session')
def mini_encoder(tmp_path_factory):
    """A checkpoint of detection's and segmentation's small encoder."""
    return write_encoder('coco_mini/cmae_vit-mini_coco',
                         tmp_path_factory.mktemp('encoder'))


@pytest.fixture(scope='session')
def hybrid_encoder(tmp_path_factory):
    """The same of their small hybrid encoder."""
    return write_encoder('coco_mini/cmae_convvit-mini_coco',
                         tmp_path_factory.mktemp('hybrid'))


@pytest.fixture
def safe_process(monkeypatch):
    """Take back what load_only_safely changes."""
    monkeypatch.setattr(torch, 'load', torch.load)
    monkeypatch.setattr(torch.serialization, 'load', torch.load)
    for name in ('WEIGHTS_ONLY', 'NO_WEIGHTS_ONLY'):
        monkeypatch.setenv(f'TORCH_FORCE_{name}_LOAD', '0')
        monkeypatch.delenv(f'TORCH_FORCE_{name}_LOAD')
    for name, handler in list(file_handlers.items()):
        monkeypatch.setitem(file_handlers, name, handler)
