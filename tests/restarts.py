"""Trains in forked processes, kills and starts them again; see
``test_exact_resume.py``. Forking saves each start the time of the imports.

Usage: python restarts.py DATA_ROOT OUT_FOLDER
"""
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from helpers import (ROOT, free_port, make_views_in_workers, model_cfg,
                     runner_cfg)
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmpretrain.registry import TRANSFORMS

from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.device import adapt_to_device


@TRANSFORMS.register_module()
class SpoilSomeImages(BaseTransform):
    """Make views float, and those of one image nan."""

    def transform(self, results):
        views = [v.astype(np.float32) for v in results['img']]
        if results['sample_idx'] == 5:
            views[0][:] = np.nan
        results['img'] = views
        return results


CHECKPOINTS = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
    'resume': True,
}


def within_epochs(data_root, work_dir):
    """Views made of whole batches; 64 steps in epochs of 8, 3 to an update."""
    cfg = runner_cfg(
        data_root, work_dir, model_cfg(), **{
            'train_dataloader.batch_size': 3,
            'train_dataloader.num_workers': 2,
            'train_dataloader.persistent_workers': True,
            'train_dataloader.dataset.with_label': True,
            'default_hooks.checkpoint.interval': 4,
            'optim_wrapper.accumulative_counts': 3,
            'optim_wrapper.clip_grad': dict(max_norm=1.),
            'custom_hooks.1.end_momentum': 1.0,
            **CHECKPOINTS
        })
    cfg.custom_hooks.append(dict(type='OnlineProbeHook', num_classes=2))
    cfg.custom_hooks.append(dict(type='KNNHook', interval=3, num_workers=0))
    cfg.train_dataloader.sampler.type = 'SeededSampler'
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='LoadCanvas', size=40),
        dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
    ]
    cfg.data_preprocessor = dict(
        type='TwoViewDataPreprocessor', mean=[120.] * 3, std=[60.] * 3,
        size=32, max_shift=8, blur_sigma=(0.1, 0.6))
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8)
    cfg.log_processor.by_epoch = True
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, end=2,
             convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=6, begin=2, end=8,
             convert_to_iter_based=True),
    ]
    return cfg


def without_epochs(data_root, work_dir):
    """Views made by mmpretrain's transforms; 60 steps."""
    cfg = runner_cfg(
        data_root, work_dir, **{
            'train_cfg.max_iters': 60,
            'default_hooks.checkpoint.interval': 5,
            **CHECKPOINTS
        })
    cfg.param_scheduler = [
        dict(type='CosineAnnealingLR', T_max=60, end=60, by_epoch=False)
    ]
    return cfg


def fine_tuning(data_root, work_dir):
    """Mixup, drop path, RandAugment, validation in between; 60 steps."""
    cfg = Config.fromfile(ROOT / 'configs/cifar10/finetune_vit-mini_10e.py')
    big = Config.fromfile(ROOT / 'configs/finetune/vit-b_pt300e_100e_in1k.py')
    cfg.merge_from_dict({
        'model.backbone.drop_path_rate': 0.3,
        'model.backbone.arch.num_layers': 2,
        'model.head.num_classes': 2,
        'data_preprocessor.num_classes': 2,
        'train_cfg.max_epochs': 10,
        'train_cfg.val_interval': 3,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': 5,
        **CHECKPOINTS
    })
    cfg.model.train_cfg = big.model.train_cfg
    cfg.train_dataloader.dataset.pipeline = big.train_pipeline
    cfg.train_dataloader.dataset.pipeline[2].scale = 32
    resize = dict(type='Resize', scale=32)
    cfg.val_dataloader.dataset.pipeline.insert(1, resize)
    for name, split, workers in (('train', 'train', 2), ('val', 'val', 0)):
        loader = cfg[f'{name}_dataloader']
        loader.dataset.data_root = str(data_root)
        loader.dataset.data_prefix = split
        loader.batch_size, loader.num_workers = 4, workers
        loader.persistent_workers = False
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    return cfg


def two_ranks(data_root, work_dir):
    """Two processes, epochs of 6 steps, 2 to an update; 30 steps.

    A step of each epoch is not finite, on one of the processes.
    """
    cfg = runner_cfg(
        data_root, work_dir, **{
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint.interval': 4,
            'optim_wrapper.accumulative_counts': 2,
            **CHECKPOINTS
        })
    cfg.train_dataloader.sampler.type = 'SeededSampler'
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5)
    cfg.log_processor.by_epoch = True
    make_views_in_workers(cfg, dict(type='SpoilSomeImages'))
    cfg.launcher = 'pytorch'
    return cfg


# Steps, times killed, and processes.
CASES = {
    within_epochs: (64, 5, 1),
    without_epochs: (60, 5, 1),
    fine_tuning: (60, 3, 1),
    two_ranks: (30, 2, 2),
}


class Tell(Hook):
    """Write each iteration's number to a pipe, before it is begun."""

    priority = 'HIGHEST'

    def __init__(self, pipe):
        self.pipe = pipe

    def before_train_iter(self, runner, *args, **kwargs):
        os.write(self.pipe, runner.iter.to_bytes(4, 'little'))


def train(make, data_root, work_dir, pipe=None):
    cfg = make(data_root, work_dir)
    adapt_to_device(cfg)
    runner = ResumableRunner.from_cfg(cfg)
    if pipe is not None:
        runner.register_hook(Tell(pipe))
    runner.train()


def fork(make, data_root, work_dir, rank, ranks, port, pipe):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        log = os.open(f'{work_dir}.{rank}.txt',
                      os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setpgid(0, 0)  # its workers die with it
        train(make, data_root, work_dir, pipe)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start(make, data_root, work_dir, ranks, stop_at=None, delay=0.):
    """Train; killed in or soon after a step. Returns whether it ended."""
    read, write = os.pipe()
    port = free_port()
    pids = [
        fork(make, data_root, work_dir, rank, ranks, port,
             write if rank == 0 else None) for rank in range(ranks)
    ]
    os.close(write)
    steps = []
    while True:
        told = os.read(read, 4)
        if not told:
            break
        steps.append(int.from_bytes(told, 'little'))
        if steps[-1] == stop_at:
            time.sleep(delay)
            for pid in pids:
                os.killpg(pid, signal.SIGKILL)
    os.close(read)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    return steps, codes


def main(data_root, out, names):
    torch.set_num_threads(1)
    for make, (total, kills, ranks) in CASES.items():
        if names and make.__name__ not in names:
            continue
        folder = Path(out) / make.__name__
        folder.mkdir(parents=True)
        began = time.time()
        steps, codes = start(make, data_root, folder / 'alone', ranks)
        assert codes == [0] * ranks, (make.__name__, 'alone', codes)
        assert steps == list(range(total)), steps
        rng = random.Random(make.__name__)
        moments = sorted(rng.sample(range(4, total - 1), kills))
        first = []
        for moment in moments:
            steps, codes = start(make, data_root, folder / 'killed', ranks,
                                 moment, rng.uniform(0, 0.03))
            assert codes == [9] * ranks, (make.__name__, moment, codes)
            first.append(steps[0])
        steps, codes = start(make, data_root, folder / 'killed', ranks)
        assert codes == [0] * ranks, (make.__name__, 'restarted', codes)
        first.append(steps[0])
        # It resumed from the newest checkpoint.
        (folder / 'starts.txt').write_text(f'{moments}\n{first}\n')
        print(make.__name__, 'killed at', moments, 'began at', first,
              f'{time.time() - began:.1f} s', flush=True)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
