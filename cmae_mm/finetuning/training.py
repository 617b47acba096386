"""Training of a config, and saving of the best checkpoint."""
import copy
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DefaultScope

from ..checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from ..checkpoints.encoder_config import KEY
from ..config import ArgumentError
from ..engine.device import MARK, is_first_process, work_dir_lock
from ..engine.resuming import list_saved, move_to_previous
from ..engine.runner import build_runner, filter_console
from ..engine.training_step import estimate_training
from ..files import write_file
from ..image_size import format_size
from ..plain_config import format_config
from .data import LabelledData
from .model import BEST_NAME, CONFIG_NAME
from .recipe import Run

# Parts of messages that the summary or the scores contain.
_KNOWN = ('encoder was loaded', 'starting a new run',
          'starts from random weights', 'The previous best checkpoint')


def describe(encoder: Mapping[str, Any], data: LabelledData,
             run: Run) -> list[str]:
    """Describe a fine-tuning in a few lines, before the first step."""
    backbone, recipe = encoder['backbone'], run.recipe
    rate = f'rate {recipe.lr:.2g}'
    if not run.frozen:
        rate += (f', layer decay {recipe.layer_decay}, drop path '
                 f'{recipe.drop_path}')
    views = ['crops', 'flips'] + ['RandAugment', 'erasing'] * recipe.augment
    views += ['mixup', 'CutMix'] * recipe.mixup
    return [
        f'task           {data.task}, {"frozen" if run.frozen else "whole"} '
        'encoder',
        f'encoder        {backbone["init_cfg"]["checkpoint"]}: '
        f'{encoder["depth"]} layers of width {encoder["width"]}, images of '
        f'{format_size(backbone["img_size"])} pixels',
        *data.describe(),
        f'recipe         {recipe.reason}: {recipe.epochs} epochs of batch '
        f'{recipe.batch_size}, {rate}, {", ".join(views)}']


def train_model(cfg: Config, data: LabelledData, lines: list[str],
                resume: bool = True, launcher: str = 'none') -> Path:
    """Train a config and save the best checkpoint.

    Only the first process writes files.

    Args:
        cfg (Config): The config.
        data (LabelledData): The labelled images.
        lines (list[str]): Summary to print before the first step.
        resume (bool): Whether to continue an interrupted training. Defaults
            to True.
        launcher (str): Job launcher. Defaults to 'none'.

    Returns:
        Path: The best checkpoint.

    Raises:
        ArgumentError: If the folder contains another training.
    """
    folder = Path(cfg.work_dir)
    files = {f'{name}.json': data.annotations(name) for name in data.parts}
    files[CONFIG_NAME] = (f'{MARK}: made by `cmae finetune`\n'
                          f'{format_config(cfg.to_dict())}')
    # The runner changes the default scope.
    scope = DefaultScope.overwrite_default_scope('mmpretrain')
    with work_dir_lock(folder, launcher), scope:
        best = folder / BEST_NAME
        resumes = resume and bool(list_saved(cfg))
        if resumes or resume and best.is_file():
            _check_same(folder, files)
        if is_first_process(launcher):
            if best.is_file() and not resumes:  # it has other settings
                move_to_previous([best])
            for name, text in files.items():
                write_file(folder / name, text)
            print('\n'.join(lines), flush=True)
        cfg = Config(dict(copy.deepcopy(cfg.to_dict()), resume=resume,
                          launcher=launcher))
        # mmengine's loggers need a unique name per run in a process.
        cfg.experiment_name = (
            f'{folder.name}_{os.getpid()}_{time.monotonic_ns()}')
        runner = build_runner(cfg)
        filter_console(runner.logger, lambda r: not any(
            part in r.getMessage() for part in _KNOWN))
        time_needed = '' if resumes else estimate_training(runner)
        if is_main_process():
            # The runner has written its own, adapted to the machine.
            write_file(folder / CONFIG_NAME, files[CONFIG_NAME])
            if time_needed:
                print(f'time           {time_needed}', flush=True)
        runner.train()
        if is_main_process():
            _keep_best(cfg, data.classes)
        barrier()
        return best


def _check_same(folder: Path, files: Mapping[str, str]) -> None:
    """Check that the training in a folder has these settings and images."""
    for name, text in files.items():
        file = folder / name
        if file.is_file() and file.read_text('utf-8') != text:
            raise ArgumentError(
                f'{folder} contains a training with other settings or images '
                f'({name} differs); choose another folder (--out), or start a '
                'new training with resume=False (--no-resume)')


def _keep_best(cfg: Config, classes: list[str]) -> None:
    """Write the best checkpoint under one name, without the optimizer."""
    folder = Path(cfg.work_dir)
    best = folder / BEST_NAME
    found = sorted(folder.glob('best_*.pth'), key=lambda f: f.stat().st_mtime)
    if not found:
        if best.is_file():  # training had already ended
            return
        raise CheckpointError(
            f'no checkpoint was saved in {folder}; the log there has the '
            'reason')
    state, meta = read_checkpoint(found[-1])
    known: dict[str, Any] = {
        k: meta[k] for k in ('epoch', 'iter', KEY) if k in meta}
    write_checkpoint(best, state, dict(
        known, dataset_meta=dict(classes=list(classes)),
        preprocessing=cfg.test_dataloader.dataset.to_dict()['pipeline']))
    for file in found:
        file.unlink()
