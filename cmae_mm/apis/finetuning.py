"""Fine-tuning: from labelled images to a finished model."""
import copy
import math
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

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
from ..checkpoints.load import RANDOM
from ..config import apply_options, load_config
from ..datasets.decode import make_settings
from ..datasets.stats import read_image_stats
from ..dependencies import cpu_count
from ..engine import ResumableRunner
from ..engine.checkpoint_folder import list_saved
from ..engine.device import adapt_to_device
from ..engine.random_state import keep_generators
from ..engine.work_dir import MARK, work_dir_lock
from ..evaluation.data import eval_pipeline
from ..files import check_output, write_file
from ..image_config import is_plain, settings_of
from ..plain_config import format_config
from .checks import (
    MODELS,
    ArgumentError,
    PathLike,
    check_checkpoint,
    check_choice,
    check_data,
    check_stats,
    check_whole_number,
)
from .encoder import with_preprocessing
from .labelled_data import LabelledData, read_labelled
from .prediction import BEST_NAME, CONFIG_NAME, load_model
from .report_classifier import report_classifier

TASKS = ('classify', 'multilabel')
_BASE = 'finetune/vit-b_pt300e_100e_in1k'
# Steps that are measured for the estimate, after one that is not.
_MEASURED_STEPS = 2
# Encoders below this width have no drop path, RandAugment or mixup.
_SMALL_WIDTH = 192


class Finetuned(NamedTuple):
    """Result of :func:`finetune`.

    Args:
        checkpoint (Path): The best checkpoint, with the names of the classes.
        config (Path): The config, which ``cmae train`` takes.
        out (Path): The folder, for :func:`load_model` and ``cmae predict``.
        metrics (Dict[str, Any]): The content of ``metrics.json``.
    """

    checkpoint: Path
    config: Path
    out: Path
    metrics: Dict[str, Any]


class Recipe(NamedTuple):
    """Settings that follow from the number of labelled images.

    Args:
        epochs (int): Number of epochs.
        batch_size (int): Images of a step.
        lr (float): Learning rate of AdamW at the head.
        layer_decay (float): Factor of the rate from a layer to that below.
        drop_path (float): Drop path rate of the last layer.
        min_crop (float): Least share of the image in a random crop.
        augment (bool): Whether to use RandAugment and random erasing.
        mixup (bool): Whether to use mixup and CutMix.
        reason (str): The rule in a few words.
    """

    epochs: int
    batch_size: int
    lr: float
    layer_decay: float
    drop_path: float
    min_crop: float
    augment: bool
    mixup: bool
    reason: str


def choose_recipe(images: int,
                  width: int,
                  depth: int,
                  frozen: bool = False,
                  epochs: Optional[int] = None,
                  batch_size: Optional[int] = None) -> Recipe:
    """Choose the recipe of a fine-tuning by the number of labelled images.

    - Batch: a quarter of the images as a power of two, from 8 to 32 below
      1,000 images, to 64 below 10,000, to 128 above.
    - Epochs: 1,500 steps, but from 20 to 100 epochs.
    - Learning rate: 1e-3 for a batch of 256, scaled by the square root, since
      AdamW normalises gradients; twice that for small encoders, and 1e-2 for
      the head of a frozen encoder.
    - Layer decay: 0.65 for 12 layers or more, 0.8 below 8, else 0.75.
    - Augmentation: crops and flips below 1,000 images; RandAugment and erasing
      from 1,000, mixup and CutMix from 10,000, with drop path 0.1. A small or
      frozen encoder has crops and flips alone: it does not overfit.

    Args:
        images (int): Number of labelled training images.
        width (int): Width of the encoder.
        depth (int): Number of its layers.
        frozen (bool): Whether only the head is trained. Defaults to False.
        epochs (int, optional): Defaults to the rule's.
        batch_size (int, optional): Defaults to the rule's.

    Returns:
        Recipe: The settings.
    """
    size = 'few' if images < 1_000 else 'some' if images < 10_000 else 'many'
    if batch_size is None:
        most = dict(few=32, some=64, many=128)[size]
        batch_size = 2**int(math.log2(min(max(images // 4, 8), most)))
    batch_size = min(batch_size, images)
    if epochs is None:
        steps = math.ceil(images / batch_size)
        epochs = min(max(1_500 // steps, 20), 100)
    small = width < _SMALL_WIDTH
    lr = 1e-2 if frozen else (2e-3 if small else 1e-3) * math.sqrt(
        batch_size / 256)
    strong = not small and not frozen and size != 'few'
    words = [f'{images:,} labelled images ({size})']
    if frozen:
        words.append('frozen encoder')
    elif small:
        words.append(f'small encoder of width {width}')
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        layer_decay=0.65 if depth >= 12 else 0.75 if depth >= 8 else 0.8,
        drop_path=0.1 if strong else 0.,
        min_crop=0.2 if strong else 0.4,
        augment=strong,
        mixup=strong and size == 'many',
        reason=', '.join(words))


def finetune(data: PathLike,
             checkpoint: PathLike,
             out: PathLike,
             *,
             task: str = 'classify',
             val: Optional[str] = None,
             frozen: bool = False,
             labels_per_class: Optional[int] = None,
             seed: int = 0,
             epochs: Optional[int] = None,
             batch_size: Optional[int] = None,
             img_size: Optional[int] = None,
             num_workers: Optional[int] = None,
             model: str = 'vit-s',
             stats: Optional[PathLike] = None,
             cfg_options: Optional[Mapping[str, Any]] = None,
             resume: bool = True) -> Finetuned:
    """Fine-tune a pre-trained encoder on labelled images.

    The folder ``out`` gets ``config.py``, which ``cmae train`` and
    mmpretrain's ``tools/train.py`` take, ``best.pth``, the best checkpoint on
    the validation part, ``metrics.json``, and pictures of the result. The
    settings follow from the number of images, see :func:`choose_recipe`.

    Example::

        import cmae_mm
        done = cmae_mm.finetune('photos', 'epoch_300.pth', 'classifier')
        model = cmae_mm.load_model('classifier')
        model.predict('new.jpg')[0].label

    Args:
        data (str | PathLike): Labelled images: class folders, also under
            ``train``, ``val`` and ``test``; a list or CSV file of paths and
            labels, which may have a column ``split``; a store or shards. A
            part ``test`` is scored once, at the end.
        checkpoint (str | PathLike): Checkpoint of the encoder, or 'random'.
        out (str | PathLike): Folder of the model.
        task (str): 'classify', or 'multilabel' for a list with several labels
            to an image, separated by ``|`` or ``;``. Defaults to 'classify'.
        val (str, optional): Name of the validation part, or a path. Defaults
            to ``val``, ``valid``, ``validation`` or ``dev``, otherwise 20 %
            of the images of each class.
        frozen (bool): Whether to train the head alone. Defaults to False.
        labels_per_class (int, optional): Number of training images that are
            drawn of each class. Defaults to all.
        seed (int): Seed of draws and training. Defaults to 0.
        epochs (int, optional): Defaults to the rule's.
        batch_size (int, optional): Defaults to the rule's.
        img_size (int, optional): Side of the images in pixels. Defaults to
            the checkpoint's.
        num_workers (int, optional): Processes that read images. Defaults to
            the processor cores, at most 8.
        model (str): With 'random': the model, as :func:`pretrain` takes it,
            or a checkpoint of the same sizes. Defaults to 'vit-s'.
        stats (str | PathLike, optional): File of ``cmae stats`` about the
            images. Defaults to what the checkpoint notes.
        cfg_options (Mapping[str, Any], optional): Overrides of settings,
            values by dotted key.
        resume (bool): Whether to continue an interrupted training in
            ``out``. Defaults to True.

    Returns:
        Finetuned: The checkpoint, the config, the folder and the metrics.

    Raises:
        ArgumentError: If an argument or the data cannot be used.
        CheckpointError: If the checkpoint does not fit.
        ConfigError: If an override does not fit.
        OutputInUse: If another process trains in ``out``.
    """
    check_finetuning(data, checkpoint, out, task, labels_per_class, seed,
                     epochs, batch_size, img_size, num_workers, model, stats)
    folder = Path(out).expanduser().absolute()
    encoder = find_encoder(checkpoint, model, img_size, stats)
    multilabel = task == 'multilabel'
    found = read_labelled(check_data(data), multilabel, val, labels_per_class,
                          seed, encoder['images'])
    images = len(found.parts['train'].records)
    recipe = choose_recipe(images, encoder['width'], encoder['depth'], frozen,
                           epochs, batch_size)
    cfg = make_config(encoder, found, recipe, task, frozen, folder, seed,
                      num_workers)
    apply_options(cfg, dict(cfg_options or {}))
    lines = [f'fine-tuning    {task}, encoder {encode_start(encoder)}',
             *found.describe(), *describe_recipe(recipe, frozen)]
    files = {f'{name}.json': found.annotations(name, multilabel)
             for name in found.parts}
    files[CONFIG_NAME] = (f'{MARK}: made by `cmae finetune`\n'
                          f'{format_config(cfg.to_dict())}')
    with work_dir_lock(folder, 'none'):
        cfg.resume = resume
        _write_inputs(files, cfg)
        _train(cfg, lines)
        # The runner has written its own, adapted to the machine.
        write_file(folder / CONFIG_NAME, files[CONFIG_NAME])
        best = _keep_best(cfg, found.classes)
        metrics = report_classifier(
            load_model(folder), found, folder,
            dict(recipe=recipe._asdict(), frozen=frozen, seed=seed,
                 encoder=str(checkpoint), config=CONFIG_NAME,
                 unreadable=found.unreadable))
    return Finetuned(best, folder / CONFIG_NAME, folder, metrics)


def check_finetuning(data: PathLike, checkpoint: PathLike, out: PathLike,
                     task: str, labels_per_class: Any, seed: Any, epochs: Any,
                     batch_size: Any, img_size: Any, num_workers: Any,
                     model: str, stats: Optional[PathLike]) -> None:
    """Check the arguments of :func:`finetune`.

    Raises:
        ArgumentError: If one is not allowed.
    """
    check_choice('task', task, TASKS)
    for name, value, least in (
            ('labels_per_class', labels_per_class, 1), ('seed', seed, 0),
            ('epochs', epochs, 1), ('batch_size', batch_size, 2),
            ('img_size', img_size, 1), ('num_workers', num_workers, 0)):
        check_whole_number(name, value, least)
    if checkpoint != RANDOM:
        check_checkpoint(checkpoint)
    elif not Path(model).expanduser().is_file():
        check_choice('model', model, MODELS)
    check_stats(stats)
    check_data(data)
    check_output(Path(out).expanduser(), is_folder=True)


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
    cfg.model = _model_config(encoder, data, recipe, multilabel, frozen)
    size = encoder['backbone']['img_size']
    batch = recipe.batch_size
    if num_workers is None:
        num_workers = min(cpu_count(), 8)
    for name in ('train', 'val', 'test'):
        is_train = name == 'train'
        part = 'val' if name not in data.parts else name
        cfg[f'{name}_dataloader'] = dict(
            batch_size=batch if is_train else 2 * batch,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=is_train,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='SeededSampler' if is_train else
                         'DefaultSampler', shuffle=is_train),
            dataset=dict(
                type='MultiLabelDataset' if multilabel else 'BaseDataset',
                ann_file=str(folder / f'{part}.json'),
                data_root='', test_mode=not is_train,
                pipeline=_train_pipeline(size, images, recipe) if is_train
                else eval_pipeline(size, images=images)))
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


def _model_config(encoder: Mapping[str, Any], data: LabelledData,
                  recipe: Recipe, multilabel: bool, frozen: bool) -> dict:
    """Give the classifier's config."""
    backbone = dict(encoder['backbone'], drop_path_rate=recipe.drop_path)
    width = encoder['width']
    head = dict(
        type='MultiLabelLinearClsHead' if multilabel else 'LinearClsHead',
        num_classes=len(data.classes), in_channels=width,
        init_cfg=dict(type='TruncNormal', layer='Linear',
                      std=0.01 if frozen else 2e-5))
    if multilabel:
        head['loss'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    elif recipe.augment:
        head['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.1,
                            mode='original')
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    if frozen:
        hybrid = backbone['type'] == 'TransferConvViT'
        backbone['frozen_stages'] = 3 if hybrid else encoder['depth']
        model['neck'] = dict(type='ClsBatchNormNeck', input_features=width)
    if recipe.mixup and not multilabel:
        model['train_cfg'] = dict(augments=[
            dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    return model


def _train_pipeline(size: int, images: Mapping[str, Any],
                    recipe: Recipe) -> List[dict]:
    """Give the transforms of training."""
    pipeline: List[dict] = [
        dict(type='SeedDraws'),
        dict(type='LoadCanvas', size=size,
             crop_ratio_range=(recipe.min_crop, 1.0), **images)]
    if recipe.augment and is_plain(dict(images)):
        pipeline += [
            dict(type='RandAugment', policies='timm_increasing',
                 num_policies=2, total_level=10, magnitude_level=9,
                 magnitude_std=0.5, hparams=dict(
                     pad_val=[104, 116, 124], interpolation='bicubic')),
            dict(type='RandomErasing', erase_prob=0.25, mode='rand',
                 min_area_ratio=0.02, max_area_ratio=1 / 3,
                 fill_color=[103.53, 116.28, 123.675],
                 fill_std=[57.375, 57.12, 58.395])]
    return [*pipeline, dict(type='PackInputs')]


def _set_schedule(cfg: Config, recipe: Recipe, frozen: bool) -> None:
    """Set optimizer, epochs and rates."""
    cfg.optim_wrapper.optimizer.lr = recipe.lr
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = recipe.layer_decay
    if frozen:
        cfg.optim_wrapper.pop('constructor')
        cfg.optim_wrapper.pop('paramwise_cfg')
    cfg.auto_scale_lr = dict(base_batch_size=recipe.batch_size)
    epochs = recipe.epochs
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs,
                         val_interval=math.ceil(epochs / 50))
    warm_up = min(epochs // 10, 5)
    cosine = dict(type='CosineAnnealingLR', T_max=epochs - warm_up,
                  by_epoch=True, begin=warm_up, end=epochs,
                  convert_to_iter_based=True)
    linear = dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0,
                  end=warm_up, convert_to_iter_based=True)
    cfg.param_scheduler = [linear, cosine] if warm_up else [cosine]


def encode_start(encoder: Mapping[str, Any]) -> str:
    """Describe the encoder in a few words."""
    backbone = encoder['backbone']
    return (f'{backbone["init_cfg"]["checkpoint"]}: {encoder["depth"]} layers '
            f'of width {encoder["width"]}, images of {backbone["img_size"]} '
            'pixels')


def describe_recipe(recipe: Recipe, frozen: bool) -> List[str]:
    """Describe the recipe and its reason."""
    rate = f'rate {recipe.lr:.2g}'
    if not frozen:
        rate += (f', layer decay {recipe.layer_decay}, drop path '
                 f'{recipe.drop_path}')
    views = ['crops', 'flips'] + ['RandAugment', 'erasing'] * recipe.augment
    views += ['mixup', 'CutMix'] * recipe.mixup
    return [
        f'recipe         for {recipe.reason}: {recipe.epochs} epochs of '
        f'batch {recipe.batch_size}, {rate}; {", ".join(views)}']


def _write_inputs(files: Mapping[str, str], cfg: Config) -> None:
    """Write config and lists, unless another training is in the folder."""
    folder = Path(cfg.work_dir)
    for name, text in files.items():
        file = folder / name
        if cfg.resume and file.is_file() and list_saved(cfg) and (
                file.read_text('utf-8') != text):
            raise ArgumentError(
                f'{folder} holds a training with other settings or images '
                f'({name} differs); name another folder (--out), or start '
                'anew with resume=False (--no-resume)')
    for name, text in files.items():
        write_file(folder / name, text)


def _train(cfg: Config, lines: List[str]) -> None:
    """Train by the framework's runner."""
    print('\n'.join(lines), flush=True)
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    # mmengine distinguishes the logs of two runs in a process by it.
    cfg.experiment_name = (
        f'{Path(cfg.work_dir).name}_{os.getpid()}_{time.monotonic_ns()}')
    adapt_to_device(cfg)
    runner = ResumableRunner.from_cfg(cfg)
    print(f'time           {estimate_time(runner)}', flush=True)
    runner.train()


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
        count = loader.batch_size
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
    kept = {k: meta[k] for k in ('epoch', 'iter', 'encoder_facts',
                                 'cmae_mm_version') if k in meta}
    preprocessing = dict(
        cfg.test_dataloader.to_dict()['dataset'])['pipeline']
    write_checkpoint(best, state, dict(
        kept, dataset_meta=dict(classes=list(classes)),
        preprocessing=preprocessing))
    for file in found:
        file.unlink()
    return best
