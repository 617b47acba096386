"""Settings of a fine-tuning for the number of labelled images."""
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..dependencies import cpu_count
from .data import LabelledData

# Encoders below this width have no drop path, RandAugment or mixup.
_SMALL_WIDTH = 192
# Unused variables of packaged configs.
_VARIABLES = ('data_root', 'train_pipeline', 'test_pipeline', 'bgr_mean',
              'bgr_std', 'crop_size', 'image_size', 'norm_cfg', 'vit_mini_96')


class Run(NamedTuple):
    """Settings of a run, in addition to encoder and images.

    Args:
        recipe (Recipe): Epochs, rate and augmentation.
        folder (Path): Work folder.
        frozen (bool): Whether only the head is trained. Defaults to False.
        decoder (str): 'small' or 'large', of masks and boxes. Defaults to
            'small'.
        seed (int): Seed of the training. Defaults to 0.
        num_workers (int, optional): Number of data workers. Defaults to one
            for each CPU core, at most 8.
        processes (int): Processes that share a batch. Defaults to 1.
    """

    recipe: 'Recipe'
    folder: Path
    frozen: bool = False
    decoder: str = 'small'
    seed: int = 0
    num_workers: int | None = None
    processes: int = 1


class Recipe(NamedTuple):
    """Settings that depend on the number of labelled images.

    Args:
        epochs (int): Number of epochs.
        batch_size (int): Images of a step.
        lr (float): Learning rate of AdamW at the head.
        layer_decay (float): Ratio of the learning rates of consecutive layers.
        drop_path (float): Drop path rate of the last layer.
        min_crop (float): Smallest ratio of the image area in a random crop.
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
                  epochs: int | None = None,
                  batch_size: int | None = None) -> Recipe:
    """Choose the recipe of a fine-tuning by the number of labelled images.

    - Batch: a quarter of the images as a power of two, from 8 to 32 below
      1,000 images, to 64 below 10,000, to 128 above.
    - Epochs: 600 steps, but from 20 to 100 epochs.
    - Learning rate: 1e-3 for a batch of 256, scaled by the square root, since
      AdamW normalises gradients; twice that for small encoders, and 1e-2 for
      the head of a frozen encoder.
    - Layer decay: 0.65 for 12 layers or more, 0.8 below 8, else 0.75.
    - Augmentation: crops and flips below 1,000 images; RandAugment and erasing
      from 1,000, mixup and CutMix from 10,000, with drop path 0.1. A small or
      frozen encoder uses crops and flips only.

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
        epochs = min(max(600 // steps, 20), 100)
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


def apply_recipe(cfg: Any, run: Run, data: LabelledData,
                 save_best: str, validations: int = 10) -> None:
    """Set the common settings of all tasks.

    Args:
        cfg (Config): The config, changed in place.
        run (Run): The settings.
        data (LabelledData): The images.
        save_best (str): Metric for the best checkpoint; higher is better.
        validations (int): Largest number of validations. Defaults to 10.
    """
    recipe, epochs = run.recipe, run.recipe.epochs
    workers = run.num_workers
    if workers is None:
        workers = min(cpu_count(), 8)
    for name in ('train', 'val', 'test'):
        part = name if name in data.parts else 'val'
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        loader.dataset.ann_file = str(run.folder / f'{part}.json')
    cfg.train_dataloader.batch_size = max(
        recipe.batch_size // run.processes, 1)
    cfg.optim_wrapper.optimizer.lr = recipe.lr
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = recipe.layer_decay
    cfg.auto_scale_lr = dict(base_batch_size=recipe.batch_size)
    cfg.train_cfg.update(
        max_epochs=epochs, val_interval=math.ceil(epochs / validations))
    linear, cosine = cfg.param_scheduler
    warm_up = min(epochs // 10, 5) if linear.by_epoch else 0
    if not linear.by_epoch:  # the base config's iterations, or fewer
        images = len(data.parts['train'].records)
        steps = epochs * math.ceil(images / recipe.batch_size)
        linear.end = min(linear.end, max(steps // 10, 1))
    else:
        linear.end = warm_up
        cfg.param_scheduler = [linear, cosine] if warm_up else [cosine]
    cosine.update(T_max=epochs - warm_up, begin=warm_up, end=epochs)
    cfg.default_hooks.checkpoint.update(
        interval=max(epochs // 10, 1), save_best=save_best, rule='greater')
    cfg.randomness, cfg.work_dir = dict(seed=run.seed), str(run.folder)
    for name in _VARIABLES:
        cfg.pop(name, None)
