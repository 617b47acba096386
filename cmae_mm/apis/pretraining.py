"""Pre-training of a folder of images: settings and run."""
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmpretrain import registry

from ..checkpoints import CheckpointError
from ..checkpoints.load import RANDOM, PretrainedEncoder, fit_encoder
from ..config import apply_options, load_config, parse_options, walk
from ..datasets.names import encode_name
from ..datasets.source import ImageSource, SourceError, open_source
from ..dependencies import cpu_count
from ..engine.device import has_accelerator, work_dir_lock
from ..engine.resuming import list_saved
from ..engine.runner import build_runner, filter_console
from ..engine.training_step import estimate_training
from ..files import write_file
from ..image_size import ImageSize, Pair, format_size, to_pair, to_size
from ..models.utils import check_blocks, is_pretrained
from ..plain_config import PlainConfigError, format_config, parse_config
from .arguments import ArgumentError, Overrides, PathLike

# Packaged config of each model that `cmae pretrain` knows.
MODELS = {
    'vit-s': 'cmae_vit-s_300e',
    'vit-b': 'cmae_vit-b_300e',
    'vit-l': 'cmae_vit-l_800e',
    'vit-h': 'cmae_vit-h_800e',
    'convvit-b': 'cmae_convvit-b_300e',
    'mini': 'quickstart/cmae_vit-mini_tiles',
}

CONFIG_NAME = 'config.py'

# Settings with an argument of their own; overrides of these are rejected.
ARGUMENTS = {
    'train_cfg.max_epochs': 'epochs',
    'train_cfg.max_iters': 'epochs',
    'train_dataloader.batch_size': 'batch_size',
    'train_dataloader.num_workers': 'num_workers',
    'train_dataloader.dataset.data_root': 'data',
    'work_dir': 'out',
    'image_stats': 'stats',
    'model.backbone.init_cfg.checkpoint': 'init',
}
# The recipe's warm-up: 40 of 300 epochs, and never more than 40.
_WARM_UP_EPOCHS, _WARM_UP_SHARE = 40, 40 / 300
# GPU memory in bytes that the batch sizes of the configs are for.
_GPU_MEMORY = 80e9
_CPU_BATCH = 16
# Minimum steps per epoch; the batch is reduced to reach it.
_LEAST_STEPS = 4
# Below this number of images, the recipe for few images is used.
_FEW_IMAGES = 100_000
# Steps between two checkpoints if epochs are shorter than this.
_STEPS_BETWEEN_CHECKPOINTS = 500


class SizeRule(NamedTuple):
    """Settings that depend on the number of images.

    Args:
        name (str): 'paper' or 'small'.
        batch_size (int, optional): Largest batch over all processes. None
            keeps the config's batch per process.
        steps (int): Minimum number of steps.
        target_mask_ratio (float): Ratio of masked patches in the target's
            input.
        reason (str): The rule in a few words.
    """

    name: str
    batch_size: int | None
    steps: int
    target_mask_ratio: float
    reason: str


def choose_by_size(images: int, recipe: str | None = None) -> SizeRule:
    """Choose the recipe by the number of images.

    The paper's recipe is for 1.3 million images: a batch of 4096, a learning
    rate in proportion to the batch, and a fixed number of epochs. With a few
    thousand images this gives few steps at a low rate. From 100,000 images on
    the recipe is unchanged. Below:

    - Batch: a hundredth of the images as a power of two, from 64 to 256.
    - Learning rate: scaled by the square root of the batch, since AdamW
      normalises gradients. From given weights a quarter of it is no better.
    - Epochs: the config's, but at least 5,000 steps.
    - Target: it encodes half of the patches, which makes a step a sixth
      cheaper and changes no score of as many steps.

    Measured on 5,000 images of 64 pixels (``docs/results.md``), percent by
    k-NN, a linear layer, 10 labels. Rows of equal time are means of 3 seeds;
    the others are of seed 0, with an interval of 1.5:

    ==========================================  ====  ======  =========
    run                                         k-NN  linear  10 labels
    ==========================================  ====  ======  =========
    random weights                              10.6  16.3     8.2
    400 steps: batch of 64, rate 1.4e-3         12.4  19.8    11.1
    400 steps: the paper's rate and momentum    11.3  16.6     8.9
    200 steps: batch of 128                     11.3  19.4    11.4
    equal time: target of half of the patches   16.0  24.0    13.3
    equal time: target of all patches           15.5  23.1    12.8
    equal time: MAE                             14.4  23.1    12.4
    equal time: MoCo v3                         13.5  19.1    10.9
    ==========================================  ====  ======  =========

    Args:
        images (int): Number of images.
        recipe (str, optional): 'paper' or 'small', for any number of images.

    Returns:
        SizeRule: The settings.
    """
    few = images < _FEW_IMAGES
    reason = 'set by --recipe' if recipe else (
        f'{"fewer than" if few else "at least"} {_FEW_IMAGES:,} images')
    if (recipe or ('small' if few else 'paper')) == 'paper':
        return SizeRule('paper', None, 0, 0., reason)
    batch_size = 2**int(math.log2(min(max(images / 100, 64), 256)))
    return SizeRule('small', batch_size, 5_000, 0.5, reason)


class Plan(NamedTuple):
    """Config for a folder of images, its summary and its main values."""

    cfg: Config
    summary: str
    values: dict[str, Any]


def plan_pretraining(data: PathLike,
                     model: str = 'vit-b',
                     *,
                     epochs: int | None = None,
                     batch_size: int | None = None,
                     out: PathLike | None = None,
                     num_workers: int | None = None,
                     img_size: ImageSize | None = None,
                     stats: PathLike | None = None,
                     init: PathLike | None = None,
                     recipe: str | None = None,
                     cfg_options: Overrides = (),
                     processes: int = 1) -> Plan:
    """Build the config of a pre-training without running it.

    The arguments are those of :func:`pretrain`; ``processes`` is the number of
    training processes.

    Returns:
        Plan: The config, its summary, and its main values by name.

    Raises:
        ArgumentError: If an argument is invalid, or there are too few images
            for the batch.
        ConfigError: If an override is invalid.
        ImageStatsError: If ``stats`` cannot be used.
        ImageStatsConflict: If an override contradicts ``stats``.
    """
    options = parse_options(cfg_options)
    given = dict(walk(options))
    for key, argument in ARGUMENTS.items():
        if key in given:
            raise ArgumentError(
                f'{key} cannot be set in cfg_options; use the argument '
                f'{argument}, on which other settings depend')
    root = Path(os.path.abspath(data))
    base = MODELS[model]
    cfg = load_config(base)
    if stats is not None:
        cfg.image_stats = str(stats)
    if img_size is not None:
        _set_size(cfg, to_pair(img_size))
    if init is not None:
        cfg.model.backbone.init_cfg = dict(
            type='Pretrained',
            checkpoint=os.path.abspath(init))
    cfg.train_dataloader.dataset.data_root = str(root)
    source = _open(root)
    images = len(source)
    if images < 2 * processes:
        raise ArgumentError(
            f'{root} has {images} image(s), but the contrastive loss needs at '
            f'least two for each of {processes} process(es)')

    rule = choose_by_size(images, recipe)
    if rule.target_mask_ratio:
        cfg.model.setdefault('target', {}).update(
            mask_ratio=rule.target_mask_ratio)
    most_workers = cfg.train_dataloader.num_workers
    if batch_size is None:
        batch_size = _choose_batch(
            cfg.train_dataloader.batch_size, model, images, processes,
            rule.batch_size)
    steps = math.ceil(images / processes) // batch_size
    if steps < 1:
        raise ArgumentError(
            f'{root} has {images} images, fewer than one batch of '
            f'{batch_size} on {processes} process(es); choose a batch size of '
            f'{images // processes} or less')
    if epochs is None:
        # a recipe in iterations: the number of epochs that covers them
        epochs = max(
            cfg.train_cfg.get('max_epochs', 0),
            math.ceil(max(cfg.train_cfg.get('max_iters', 0), rule.steps)
                      / steps))
    if num_workers is None:
        local = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        num_workers = min(most_workers, max(cpu_count() // local, 1))

    warm_up = _warm_up(epochs, steps)
    _fit(cfg, epochs, steps, batch_size, num_workers, warm_up)
    name = root.stem if root.is_file() else root.name
    cfg.work_dir = str(
        out if out is not None else Path('work_dirs') / f'{model}_{name}')
    # mmengine's loggers need a unique name per run in a process.
    cfg.experiment_name = os.path.abspath(cfg.work_dir)
    if 'optim_wrapper.optimizer.lr' in given:
        cfg.auto_scale_lr.enable = False
    apply_options(cfg, options)
    _check_size(cfg.model.backbone)

    rate = cfg.optim_wrapper.optimizer.lr
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    total = batch_size * processes * accumulated
    base_batch = cfg.auto_scale_lr.base_batch_size
    scaling = ''
    if cfg.auto_scale_lr.enable:
        scaling = f', {rate:g} for a batch of {base_batch} scaled to {total}'
        if rule.name == 'small':
            scaling += ' by the square root'
            rate *= math.sqrt(total / base_batch)
            cfg.optim_wrapper.optimizer.lr = rate
            cfg.auto_scale_lr.base_batch_size = total
        else:
            rate *= total / base_batch
    values = dict(
        model=model, base=base, images=images, img_size=img_size,
        recipe=rule.name,
        batch_size=batch_size, processes=processes, steps_per_epoch=steps,
        epochs=epochs, warm_up_epochs=warm_up, learning_rate=rate,
        num_workers=num_workers, out=cfg.work_dir)
    return Plan(cfg, _summarize(cfg, values, source, rule, scaling), values)


def _set_size(cfg: Config, size: Pair) -> None:
    """Set the size of the views, in place."""
    views = cfg.data_preprocessor
    shift = round(views.max_shift * min(size) / min(to_pair(views.size)))
    canvas = tuple(side + shift for side in size)
    cfg.model.backbone.img_size = to_size(size)
    views.update(size=to_size(size), max_shift=shift,
                 canvas_size=to_size(canvas))
    cfg.train_dataloader.dataset.pipeline[0].size = to_size(canvas)


def _check_size(backbone: Mapping[str, Any]) -> None:
    """Check that patches and masking blocks divide the image."""
    patch = backbone.get('patch_size') or math.prod(
        backbone.get('patch_sizes', (4, 2, 2)))
    try:
        check_blocks(backbone.get('img_size', 224), patch,
                     backbone.get('mask_block', 2))
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def _open(root: Path) -> ImageSource:
    """List the images to train on."""
    try:
        return open_source(root, split='train')
    except SourceError as error:
        raise ArgumentError(str(error)) from error


def _choose_batch(recipe: int, model: str, images: int, processes: int,
                  most_of_all: int | None) -> int:
    """Choose a batch size for the memory and the number of images."""
    if not has_accelerator():
        most = recipe if model == 'mini' else _CPU_BATCH
    elif torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        most = int(recipe * min(memory / (0.95 * _GPU_MEMORY), 1.))
    else:
        most = recipe
    most = min(most, images // (processes * _LEAST_STEPS))
    if most_of_all is not None:
        most = min(most, most_of_all // processes)
    # a power of two, and at least 2: the contrastive loss needs a negative
    return 2**int(math.log2(max(most, 2)))


def _warm_up(epochs: int, steps: int) -> float:
    """Return the epochs of warm-up; below one, a fraction or 0."""
    share = min(epochs * _WARM_UP_SHARE, _WARM_UP_EPOCHS)
    if share >= 1:
        return round(share)
    # of two steps or more
    return round(share, 3) if int(round(share, 3) * steps) > 1 else 0


def _fit(cfg: Config, epochs: int, steps: int, batch_size: int,
         num_workers: int, warm_up: float) -> None:
    """Set epochs, batch, workers and schedule of a config, in place."""
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    cfg.param_scheduler = _schedule(epochs, warm_up)
    cfg.auto_scale_lr.enable = True
    cfg.train_dataloader.update(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        sampler=dict(type='SeededSampler', shuffle=True))
    interval = min(
        math.ceil(_STEPS_BETWEEN_CHECKPOINTS / steps), epochs // 10)
    cfg.default_hooks.checkpoint.update(
        by_epoch=True, interval=max(interval, 1))
    cfg.log_processor.by_epoch = True


def _schedule(epochs: int, warm_up: float) -> list[dict[str, Any]]:
    cosine = dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=warm_up,
        end=epochs,
        convert_to_iter_based=True)
    if not warm_up:
        return [cosine]
    linear = dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=warm_up,
        convert_to_iter_based=True)
    return [linear, cosine]


def _summarize(cfg: Config, values: dict[str, Any], source: ImageSource,
               rule: SizeRule, scaling: str) -> str:
    """Describe the config in a few lines."""
    steps, epochs = values['steps_per_epoch'], values['epochs']
    images = source.describe()
    stats = cfg.get('image_stats')
    if stats is not None:
        images += (f'; {stats["channels"]} channel(s) of {stats["dtype"]} '
                   f'from {encode_name(stats["file"])}')
    start = cfg.model.backbone.get('init_cfg')
    saving = cfg.default_hooks.checkpoint
    kept = saving.get('max_keep_ckpts', -1)
    masked = (cfg.model.get('target') or {}).get('mask_ratio')
    return '\n'.join([
        f'CMAE, {values["model"]}, from the config {values["base"]}',
        f'images         {images}',
        *([f'views          {format_size(values["img_size"])} pixels, shifted '
           f'by less than {cfg.data_preprocessor.max_shift}']
          if values['img_size'] is not None else []),
        *([f'start          encoder of {encode_name(start["checkpoint"])}']
          if is_pretrained(start) else []),
        f'recipe         {rule.name}: {rule.reason}'
        + (f'; the target encodes {1 - masked:.0%} of the patches'
           if masked else ''),
        f'batch          {values["batch_size"]} on {values["processes"]} '
        f'process(es): {steps:,} steps an epoch',
        f'epochs         {epochs:,}, with {values["warm_up_epochs"]:g} of '
        f'warm-up; {epochs * steps:,} steps',
        f'learning rate  {values["learning_rate"]:.4g}{scaling}',
        f'checkpoints    every {saving.interval} epoch(s)'
        + (f', at most {kept} kept' if kept > 0 else ''),
        f'folder         {encode_name(values["out"])}, config in '
        f'{CONFIG_NAME}',
    ])


# Settings that must not change when a training resumes.
_LASTING = ('model', 'data_preprocessor', 'train_cfg', 'optim_wrapper',
            'param_scheduler', 'auto_scale_lr', 'train_dataloader.batch_size',
            'train_dataloader.dataset')


def run_pretraining(plan: Plan, resume: bool, launcher: str,
                    log_to: Sequence[str]) -> tuple[Path, Path]:
    """Train by a plan.

    Args:
        plan (Plan): See :func:`plan_pretraining`.
        resume (bool): See :func:`~cmae_mm.pretrain`.
        launcher (str): See there.
        log_to (Sequence[str]): See there.

    Returns:
        tuple[Path, Path]: The last checkpoint, and the written config.
    """
    cfg = plan.cfg
    cfg.resume, cfg.launcher = resume, launcher
    folder = Path(cfg.work_dir)
    config = folder / CONFIG_NAME
    with work_dir_lock(folder, launcher):
        resumes = resume and bool(list_saved(cfg))
        if resumes:
            _check_same_training(cfg, config)
        else:
            _check_start(cfg)
        text = f'{_as_comment(plan.summary)}\n{format_config(cfg.to_dict())}'
        runner = build_runner(cfg, log_to)
        if is_main_process():
            write_file(config, text)
            print(plan.summary, flush=True)
        # The line of the data set is in the summary.
        filter_console(runner.logger, lambda r: (
            r.getMessage().rstrip('.') not in plan.summary
            and 'starting a new run' not in r.getMessage()))
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
            module = registry.MODELS.build(backbone)
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
    if not config.is_file():
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
