"""Training of classifiers: encoder, config, runner and best checkpoint."""
import copy
import math
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as REGISTRY
from torch import nn

from .. import checkpoints
from ..checkpoints import (
    CheckpointError,
    LoadedEncoder,
    load_encoder_into,
    read_checkpoint,
    write_checkpoint,
)
from ..config import load_config
from ..datasets.decode import make_settings
from ..datasets.stats import read_image_stats
from ..dependencies import cpu_count
from ..engine import ResumableRunner
from ..engine.checkpoint_folder import list_saved
from ..engine.device import adapt_to_device
from ..engine.hooks.evaluation_hooks import keep_generators
from ..engine.work_dir import MARK, work_dir_lock
from ..evaluation.data import eval_pipeline
from ..files import write_file
from ..image_config import is_plain, settings_of
from ..packaged import find_checkpoint
from ..plain_config import format_config
from .arguments import RANDOM, ArgumentError, PathLike
from .encoder import with_preprocessing
from .finetuning import Recipe
from .finished_model import BEST_NAME, CONFIG_NAME
from .labelled_data import LabelledData
from .recipe import MODELS

_BASE = 'finetune/vit-b_pt300e_100e_in1k'
# Steps that are measured for the estimate, after one that is not.
_MEASURED_STEPS = 2


def find_encoder(checkpoint: PathLike, model: str, img_size: Optional[int],
                 stats: Optional[PathLike]) -> Dict[str, Any]:
    """Find the encoder's config, and how its images are prepared.

    Args:
        checkpoint (str | PathLike): See :func:`finetune`.
        model (str): See :func:`finetune`.
        img_size (int, optional): See :func:`finetune`.
        stats (str | PathLike, optional): See :func:`finetune`.

    Returns:
        Dict[str, Any]: ``backbone``, a config; ``mean`` and ``std`` of each
        channel; ``images``, arguments of ``LoadImage``; ``width``, ``depth``.

    Raises:
        CheckpointError: If the file holds no encoder, or one that does not
            fit the channels.
    """
    init_default_scope('mmpretrain')
    if '://' not in str(checkpoint):
        checkpoint = str(find_checkpoint(checkpoint))
    model = str(find_checkpoint(model))
    if checkpoint == RANDOM and model in MODELS:
        cfg = load_config(MODELS[model])
        backbone = {k: cfg.model.backbone[k] for k in (
            'arch', 'img_size', 'patch_size', 'patch_sizes')
            if k in cfg.model.backbone}
        hybrid = 'ConvViT' in cfg.model.backbone.type
        backbone['type'] = 'TransferConvViT' if hybrid else 'TransferViT'
        found: Dict[str, Any] = dict(
            mean=list(cfg.data_preprocessor.mean),
            std=list(cfg.data_preprocessor.std), images=None)
    else:
        source = model if checkpoint == RANDOM else checkpoint
        if not Path(source).exists():
            raise ArgumentError(
                f'model must be one of {", ".join(MODELS)}, or a checkpoint, '
                f'but got {model!r}')
        loaded = checkpoints.load_encoder(str(source), img_size=img_size)
        backbone = dict(loaded.config)
        found = {} if stats else _preparation(loaded)
    if stats:
        known = read_image_stats(stats)
        backbone['in_channels'] = known['channels']
        images = settings_of(known)
        found = dict(mean=known['mean'], std=known['std'],
                     images=None if is_plain(images) else images)
    backbone.update(final_norm=False, out_type='avg_featmap', init_cfg=dict(
        type='Pretrained', checkpoint=RANDOM if checkpoint == RANDOM else
        os.path.abspath(Path(checkpoint).expanduser())))
    if img_size:
        backbone['img_size'] = img_size
    module = REGISTRY.build(backbone)
    if checkpoint != RANDOM:  # before anything is written
        load_encoder_into(module, backbone['init_cfg']['checkpoint'])
    return dict(found, backbone=backbone, width=module.embed_dims,
                depth=module.num_layers)


def _preparation(loaded: LoadedEncoder) -> Dict[str, Any]:
    """Give how the images of an encoder are decoded and normalised."""
    encoder = with_preprocessing(loaded)
    return dict(mean=encoder.mean.flatten().tolist(),
                std=encoder.std.flatten().tolist(), images=encoder.images)


def make_config(encoder: Mapping[str, Any], data: LabelledData,
                recipe: Recipe, task: str, frozen: bool, folder: Path,
                seed: int, num_workers: Optional[int]) -> Config:
    """Make the config of a fine-tuning.

    Args:
        encoder (Mapping[str, Any]): See :func:`find_encoder`.
        data (LabelledData): The labelled images.
        recipe (Recipe): Epochs, rate and augmentation.
        task (str): 'classify' or 'multilabel'.
        frozen (bool): Whether only the head is trained.
        folder (Path): Work folder, with the annotation files.
        seed (int): Seed of the training.
        num_workers (int, optional): Processes that read images.

    Returns:
        Config: For mmengine's runner.
    """
    cfg = load_config(_BASE)
    images = encoder['images'] or {}
    multilabel = task == 'multilabel'
    cfg.data_preprocessor = dict(
        type='ChannelClsDataPreprocessor',
        num_classes=len(data.classes),
        mean=encoder['mean'], std=encoder['std'],
        dtype=images.get('dtype', 'uint8'),
        to_rgb=make_settings(**images).is_bgr,
        to_onehot=recipe.mixup and not multilabel)
    _set_model(cfg, encoder, len(data.classes), recipe, multilabel, frozen)
    _set_loaders(cfg, encoder['backbone']['img_size'], images, recipe,
                 num_workers)
    for name in ('train', 'val', 'test'):
        part = name if name in data.parts else 'val'
        cfg[f'{name}_dataloader'].dataset.update(
            type='MultiLabelDataset' if multilabel else 'BaseDataset',
            ann_file=str(folder / f'{part}.json'), data_root='',
            data_prefix='')
    cfg.val_evaluator = dict(type='AveragePrecision') if multilabel else dict(
        type='Accuracy', topk=(1, ))
    cfg.test_evaluator = cfg.val_evaluator
    _set_schedule(cfg, recipe, frozen)
    cfg.default_hooks.checkpoint.update(
        interval=max(recipe.epochs // 10, 1), rule='greater',
        save_best='multi-label/mAP' if multilabel else 'accuracy/top1')
    cfg.custom_hooks = [] if multilabel else [dict(type='TransferCheckHook')]
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(folder)
    for name in ('data_root', 'train_pipeline', 'test_pipeline', 'bgr_mean',
                 'bgr_std'):
        cfg.pop(name, None)
    return cfg


def _set_model(cfg: Config, encoder: Mapping[str, Any], classes: int,
               recipe: Recipe, multilabel: bool, frozen: bool) -> None:
    """Set encoder and head."""
    model, width = cfg.model, encoder['width']
    model.backbone = dict(encoder['backbone'], drop_path_rate=recipe.drop_path)
    model.head.update(num_classes=classes, in_channels=width)
    if multilabel:
        model.head.type = 'MultiLabelLinearClsHead'
        model.head.loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    elif not recipe.augment:
        model.head.loss = dict(type='CrossEntropyLoss')
    if frozen:
        hybrid = model.backbone.type == 'TransferConvViT'
        model.backbone.frozen_stages = 3 if hybrid else encoder['depth']
        model.neck = dict(type='ClsBatchNormNeck', input_features=width)
        model.head.init_cfg.std = 0.01
    if multilabel or not recipe.mixup:
        model.pop('train_cfg')


def _set_loaders(cfg: Config, size: int, images: Mapping[str, Any],
                 recipe: Recipe, num_workers: Optional[int]) -> None:
    """Set batches, workers and pipelines."""
    augmentation = [t for t in cfg.train_pipeline if recipe.augment
                    and t.type in ('RandAugment', 'RandomErasing')]
    pipeline = [
        dict(type='SeedDraws'),
        dict(type='LoadCanvas', size=size,
             crop_ratio_range=(recipe.min_crop, 1.0), **images),
        *(augmentation if is_plain(dict(images)) else []),
        dict(type='PackInputs')]
    if num_workers is None:
        num_workers = min(cpu_count(), 8)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(
            batch_size=recipe.batch_size, num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available())
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.val_dataloader.dataset.pipeline = eval_pipeline(size, images=images)
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)


def _set_schedule(cfg: Config, recipe: Recipe, frozen: bool) -> None:
    """Set optimizer, epochs and rates."""
    cfg.optim_wrapper.optimizer.lr = recipe.lr
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = recipe.layer_decay
    if frozen:
        cfg.optim_wrapper.pop('constructor')
        cfg.optim_wrapper.pop('paramwise_cfg')
    cfg.auto_scale_lr = dict(base_batch_size=recipe.batch_size)
    epochs = recipe.epochs
    cfg.train_cfg.update(
        max_epochs=epochs, val_interval=math.ceil(epochs / 50))
    linear, cosine = cfg.param_scheduler
    linear.end = min(epochs // 10, 5)
    cosine.update(T_max=epochs - linear.end, begin=linear.end, end=epochs)
    if not linear.end:
        cfg.param_scheduler = [cosine]


def describe(encoder: Mapping[str, Any], data: LabelledData, recipe: Recipe,
             task: str, frozen: bool) -> List[str]:
    """Describe a fine-tuning in a few lines, before the first step."""
    backbone = encoder['backbone']
    rate = f'rate {recipe.lr:.2g}'
    if not frozen:
        rate += (f', layer decay {recipe.layer_decay}, drop path '
                 f'{recipe.drop_path}')
    views = ['crops', 'flips'] + ['RandAugment', 'erasing'] * recipe.augment
    views += ['mixup', 'CutMix'] * recipe.mixup
    return [
        f'task           {task}, {"frozen" if frozen else "whole"} encoder',
        f'encoder        {backbone["init_cfg"]["checkpoint"]}: '
        f'{encoder["depth"]} layers of width {encoder["width"]}, images of '
        f'{backbone["img_size"]} pixels',
        *data.describe(),
        f'recipe         {recipe.reason}: {recipe.epochs} epochs of batch '
        f'{recipe.batch_size}, {rate}, {", ".join(views)}']


def train_model(cfg: Config, data: LabelledData, lines: List[str],
                resume: bool = True) -> Path:
    """Train by the framework's runner, and keep the best checkpoint.

    Args:
        cfg (Config): See :func:`make_config`.
        data (LabelledData): The labelled images.
        lines (List[str]): Summary to print before the first step.
        resume (bool): Whether to continue an interrupted training. Defaults
            to True.

    Returns:
        Path: The best checkpoint.

    Raises:
        ArgumentError: If the folder holds another training.
    """
    folder = Path(cfg.work_dir)
    files = {f'{name}.json': data.annotations(name) for name in data.parts}
    files[CONFIG_NAME] = (f'{MARK}: made by `cmae finetune`\n'
                          f'{format_config(cfg.to_dict())}')
    with work_dir_lock(folder, 'none'):
        if resume and list_saved(cfg):
            _check_same(folder, files)
        for name, text in files.items():
            write_file(folder / name, text)
        print('\n'.join(lines), flush=True)
        cfg = Config(dict(copy.deepcopy(cfg.to_dict()), resume=resume))
        # mmengine distinguishes the logs of two runs in a process by it.
        cfg.experiment_name = (
            f'{folder.name}_{os.getpid()}_{time.monotonic_ns()}')
        adapt_to_device(cfg)
        runner = ResumableRunner.from_cfg(cfg)
        # The runner has written its own, adapted to the machine.
        write_file(folder / CONFIG_NAME, files[CONFIG_NAME])
        print(f'time           {estimate_time(runner)}', flush=True)
        runner.train()
        return _keep_best(cfg, data.classes)


def _check_same(folder: Path, files: Mapping[str, str]) -> None:
    """Check that the training in a folder has these settings and images."""
    for name, text in files.items():
        file = folder / name
        if file.is_file() and file.read_text('utf-8') != text:
            raise ArgumentError(
                f'{folder} holds a training with other settings or images '
                f'({name} differs); name another folder (--out), or start '
                'anew with resume=False (--no-resume)')


def estimate_time(runner: ResumableRunner) -> str:
    """Estimate the time of a training from a few measured steps.

    Args:
        runner (ResumableRunner): Before training; left as it is.

    Returns:
        str: The estimate and what it is made of.
    """
    loader = runner.build_dataloader(
        dict(runner.cfg.train_dataloader, num_workers=0,
             persistent_workers=False))
    steps = len(loader) * runner.cfg.train_cfg.max_epochs
    with keep_generators():
        model: nn.Module = copy.deepcopy(runner.model).train()
        batches = iter(loader)
        batch = next(batches)
        begun = time.perf_counter()
        count = runner.cfg.train_dataloader.batch_size
        for index in range(count):
            loader.dataset[index % len(loader.dataset)]
        reading = time.perf_counter() - begun
        for number in range(1 + _MEASURED_STEPS):
            if number == 1:
                begun = time.perf_counter()
            losses = model(**model.data_preprocessor(batch, True),
                           mode='loss')
            model.parse_losses(losses)[0].backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        step = (time.perf_counter() - begun) / _MEASURED_STEPS
    workers = runner.cfg.train_dataloader.num_workers
    if torch.cuda.is_available() and workers:
        step = max(step, reading / workers)
    else:  # workers share the cores with the model
        step += reading / max(min(workers, cpu_count()), 1)
    # An image that is validated costs about a third of one that is trained.
    val = len(runner.val_dataloader.dataset) / count / 3
    val *= runner.cfg.train_cfg.max_epochs / runner.cfg.train_cfg.val_interval
    seconds = step * (steps + val)
    return (f'about {format_time(seconds)} on this machine: {steps:,} steps '
            f'of {step:.2g} s')


def format_time(seconds: float) -> str:
    """Format a duration in its largest unit."""
    for unit, size in (('h', 3600), ('min', 60)):
        if seconds >= size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def _keep_best(cfg: Config, classes: List[str]) -> Path:
    """Write the best checkpoint under one name, without the optimizer."""
    folder = Path(cfg.work_dir)
    best = folder / BEST_NAME
    found = sorted(folder.glob('best_*.pth'), key=lambda f: f.stat().st_mtime)
    if not found:
        if best.is_file():  # of a training that had ended before
            return best
        raise CheckpointError(
            f'no checkpoint was saved in {folder}; the log there has the '
            'reason')
    state, meta = read_checkpoint(found[-1])
    known: Dict[str, Any] = {
        k: meta[k] for k in ('epoch', 'iter', 'encoder_facts') if k in meta}
    write_checkpoint(best, state, dict(
        known, dataset_meta=dict(classes=list(classes)),
        preprocessing=cfg.test_dataloader.dataset.to_dict()['pipeline']))
    for file in found:
        file.unlink()
    return best
