"""Run of ``cmae pretrain``: checks, training, and the written config."""
import logging
from pathlib import Path
from typing import Any, Mapping, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmpretrain.registry import MODELS

from ..checkpoints import CheckpointError
from ..checkpoints.load import RANDOM, PretrainedEncoder, fit_encoder
from ..config import walk
from ..engine import ResumableRunner
from ..engine.checkpoint_folder import list_saved
from ..engine.device import adapt_to_device
from ..engine.estimate import estimate_training
from ..engine.work_dir import log_to as add_log_backends
from ..engine.work_dir import work_dir_lock
from ..files import write_file
from ..models.utils import is_pretrained
from ..plain_config import PlainConfigError, format_config, parse_config
from .arguments import ArgumentError
from .recipe import ARGUMENTS, CONFIG_NAME, Plan

# Settings that must not change when a training resumes.
_LASTING = ('model', 'data_preprocessor', 'train_cfg', 'optim_wrapper',
            'param_scheduler', 'auto_scale_lr', 'train_dataloader.batch_size',
            'train_dataloader.dataset')


def run_pretraining(plan: Plan, resume: bool, launcher: str,
                    log_to: Sequence[str]) -> Tuple[Path, Path]:
    """Train by a plan.

    Args:
        plan (Plan): See :func:`plan_pretraining`.
        resume (bool): See :func:`~cmae_mm.pretrain`.
        launcher (str): See there.
        log_to (Sequence[str]): See there.

    Returns:
        Tuple[Path, Path]: The last checkpoint, and the written config.
    """
    cfg = plan.cfg
    cfg.resume, cfg.launcher = resume, launcher
    with work_dir_lock(cfg.work_dir, launcher):
        return _train(cfg, plan.summary, log_to)


def _train(cfg: Config, summary: str,
           log_to: Sequence[str]) -> Tuple[Path, Path]:
    """Train in a work folder locked by this process."""
    folder = Path(cfg.work_dir)
    config = folder / CONFIG_NAME
    if cfg.resume:
        _check_same_training(cfg, config)
    resumes = cfg.resume and bool(list_saved(cfg))
    if not resumes:
        _check_start(cfg)
    text = f'{_as_comment(summary)}\n{format_config(cfg.to_dict())}'
    adapt_to_device(cfg)
    add_log_backends(cfg, log_to)
    runner = ResumableRunner.from_cfg(cfg)
    if is_main_process():
        write_file(config, text)
        print(summary, flush=True)
    for handler in runner.logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            # The line of the data set is in the summary.
            handler.addFilter(
                lambda r: r.getMessage().rstrip('.') not in summary)
    time_needed = '' if resumes else estimate_training(runner)
    if time_needed and is_main_process():
        print(f'time           {time_needed}', flush=True)
    runner.train()
    saved = list_saved(cfg)
    if not saved:
        raise CheckpointError(
            f'no checkpoint was saved in {folder}; see the log there')
    return saved[0].path, config


def _as_comment(summary: str) -> str:
    lines = ['Written by `cmae pretrain`; `cmae train` accepts it, too.', '',
             *summary.splitlines()[:-1]]
    # mmengine replaces {{...}} in comments, too.
    return '\n'.join(
        f'# {line}'.rstrip() for line in lines).replace('{{', '{ {')


def _check_start(cfg: Config) -> None:
    """Check the initial weights of the encoder before the model is built."""
    backbone = cfg.model.backbone
    if not is_pretrained(backbone.get('init_cfg')):
        return
    start = PretrainedEncoder(
        **{k: v for k, v in backbone.init_cfg.items() if k != 'type'})
    if start.checkpoint != RANDOM:
        with torch.device('meta'):
            module = MODELS.build(backbone)
        fit_encoder(module, start.checkpoint, start.encoder)


def _read_before(config: Path) -> Mapping[str, Any]:
    """Read the config of the training in a folder."""
    try:
        return parse_config(config.read_text('utf-8'))
    except (PlainConfigError, OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f'{config} is not a config written by `cmae pretrain` ({error}); '
            'choose another folder with out (--out), or start a new training '
            'with resume=False (--no-resume)') from error


def _check_same_training(cfg: Config, config: Path) -> None:
    """Check that a folder's training, if it has one, has the same settings."""
    if not config.is_file() or not list_saved(cfg):
        return
    now, before = ({
        key: value
        for key, value in walk(c) if key.startswith(_LASTING)
        and not isinstance(value, (Mapping, list, tuple))
    } for c in (cfg.to_dict(), _read_before(config)))
    # Settings with an argument come first, the others depend on them.
    differ = sorted(
        (key for key in {*now, *before} if now.get(key) != before.get(key)),
        key=lambda key: (key not in ARGUMENTS, key))
    changed = [
        f'{ARGUMENTS.get(key, key)} {before.get(key)!r} -> {now.get(key)!r}'
        for key in differ
    ]
    if changed:
        more = len(changed) - 4
        listed = ', '.join(changed[:4]) + (
            f' and {more} more' if more > 0 else '')
        raise ArgumentError(
            f'{config.parent} contains a training with other settings '
            f'({listed}); use the same arguments to resume, or `cmae train '
            f'{config}` if the number of images has changed, choose another '
            'folder with out (--out), or start a new training with '
            'resume=False (--no-resume)')
