"""Fine-tuning: from labelled images to a finished model."""
import math
from pathlib import Path
from typing import Annotated, Any, Dict, Literal, NamedTuple, Optional

from .arguments import (
    ArgumentError,
    CheckpointOrRandom,
    Count,
    Data,
    Output,
    OutputFolder,
    Overrides,
    PathLike,
    Size,
    Stats,
    command,
    interruptible,
)

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
    - Epochs: 600 steps, but from 20 to 100 epochs.
    - Learning rate: 1e-3 for a batch of 256, scaled by the square root, since
      AdamW normalises gradients; twice that for small encoders, and 1e-2 for
      the head of a frozen encoder.
    - Layer decay: 0.65 for 12 layers or more, 0.8 below 8, else 0.75.
    - Augmentation: crops and flips below 1,000 images; RandAugment and erasing
      from 1,000, mixup and CutMix from 10,000, with drop path 0.1. A small or
      frozen encoder has crops and flips alone.

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


def apply_recipe(cfg: Any, recipe: Recipe, folder: Path, seed: int,
                 save_best: str) -> None:
    """Set a recipe in a config of detection or segmentation.

    Args:
        cfg (Config): The config, changed in place.
        recipe (Recipe): The settings.
        folder (Path): Work folder of the run.
        seed (int): Seed of the run.
        save_best (str): Metric that chooses the checkpoint, higher is better.
    """
    epochs = recipe.epochs
    interval = max(epochs // 10, 1)
    cfg.train_dataloader.batch_size = recipe.batch_size
    cfg.optim_wrapper.optimizer.lr = recipe.lr
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = recipe.layer_decay
    cfg.auto_scale_lr = dict(base_batch_size=recipe.batch_size)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=interval)
    cfg.param_scheduler[1].update(T_max=epochs, end=epochs)
    cfg.default_hooks.checkpoint.update(
        interval=interval, save_best=save_best, rule='greater')
    cfg.default_hooks.visualization.update(draw=False)
    cfg.randomness, cfg.work_dir = dict(seed=seed), str(folder)


@command()
def finetune(data: Data,
             checkpoint: CheckpointOrRandom,
             out: Optional[OutputFolder] = None,
             *,
             task: Literal['classify', 'multilabel', 'segment',
                           'detect'] = 'classify',
             val: Optional[str] = None,
             frozen: bool = False,
             labels_per_class: Optional[Size] = None,
             seed: Count = 0,
             epochs: Optional[Size] = None,
             batch_size: Optional[Size] = None,
             img_size: Optional[Size] = None,
             num_workers: Optional[Count] = None,
             model: str = 'vit-s',
             decoder: Literal['fcn', 'upernet'] = 'fcn',
             stats: Optional[Stats] = None,
             resume: bool = True,
             cfg_options: Overrides = ()) -> Finetuned:
    """Train a classifier on a pre-trained encoder and labelled images.

    The folder --out gets config.py, which `cmae train` and mmpretrain's
    tools/train.py take, best.pth, the best checkpoint on the validation
    images, metrics.json, confusion matrices and the most confident mistakes.
    Rate, epochs and augmentation follow from the number of labelled images.

    Example::

        $ cmae finetune photos work_dirs/vit-s_pool --out classifier
        $ cmae finetune labels.csv enc.pth --labels-per-class 10 --out few

        import cmae_mm
        done = cmae_mm.finetune('photos', 'epoch_300.pth', 'classifier')
        model = cmae_mm.load_model('classifier')
        print(model.predict('new.jpg')[0].label)

    Args:
        data: Class folders, also under train, val and test; a list or CSV
            file of paths and labels, which may have a column split; a store
            or shards. The part test is scored once, at the end.
        checkpoint: Checkpoint of the encoder, or the folder of `cmae
            pretrain`, whose last one is taken; random for random weights.
        out: Folder of the model. Defaults to work_dirs/DATA_TASK.
        task: One label to an image; several, separated by | or ; in a list;
            a mask of the same name in another folder; or boxes in COCO files.
            Defaults to classify.
        val: Name of the validation part, or a path. Defaults to val, valid,
            validation or dev; 20 % of each class if there is none.
        frozen: Train the head alone.
        labels_per_class: Number of training images to draw of each class.
            Defaults to all.
        seed: Seed of draws and training. Defaults to 0.
        epochs: Number of epochs. Defaults to the recipe's.
        batch_size: Images in a batch. Defaults to the recipe's.
        img_size: Side of the images in pixels. Defaults to the checkpoint's.
        num_workers: Processes that read images. Defaults to one for each
            processor core, at most 8.
        model: For random weights: a model as `cmae pretrain --model` takes
            it, or a checkpoint of the same sizes. Defaults to vit-s.
        decoder: Decoder of masks, two layers or UPerNet. Defaults to fcn.
        stats: File of `cmae stats` on the images. Defaults to the
            checkpoint's own record.
        resume: Start a new training although there is one in --out, whose
            checkpoints are moved aside.
        cfg_options: Overrides of settings by dotted keys.

    Returns:
        Finetuned: The checkpoint, the config, the folder and the metrics.

    Raises:
        ArgumentError: If an argument or the data cannot be used.
        CheckpointError: If the checkpoint does not fit.
        ConfigError: If an override does not fit.
        OutputInUse: If another process trains in ``out``.
    """
    from ..config import apply_options, parse_options
    from .classifier_training import (
        describe,
        find_encoder,
        make_config,
        train_model,
    )
    from .finished_model import CONFIG_NAME, load_model
    from .labelled_data import read_labelled
    from .report_classifier import report_classifier
    folder = Path(out or Path('work_dirs') / f'{Path(data).stem}_{task}')
    folder = folder.expanduser().absolute()
    encoder = find_encoder(
        checkpoint, model, None if task == 'detect' else img_size, stats)
    if task == 'detect':
        from .detection import read_boxes
        found = read_boxes(data, val, labels_per_class, seed)
        batch_size = batch_size or 4
    elif task == 'segment':
        from .segmentation import read_masks
        found = read_masks(data, val, labels_per_class, seed)
    else:
        found = read_labelled(data, task == 'multilabel', val,
                              labels_per_class, seed, encoder['images'])
    recipe = choose_recipe(len(found.parts['train'].records), encoder['width'],
                           encoder['depth'], frozen, epochs, batch_size)
    if task == 'detect':
        from .detection import make_detect_config
        cfg = make_detect_config(encoder, found, recipe, frozen, folder, seed,
                                 num_workers, img_size)
    elif task == 'segment':
        from .segmentation import make_segment_config
        cfg = make_segment_config(encoder, found, recipe, frozen, decoder,
                                  folder, seed, num_workers)
    else:
        cfg = make_config(encoder, found, recipe, task, frozen, folder, seed,
                          num_workers)
    apply_options(cfg, parse_options(cfg_options))
    with interruptible(f'the last checkpoint, if there is one, is in {folder};'
                       ' the same command continues'):
        best = train_model(
            cfg, found, describe(encoder, found, recipe, task, frozen), resume)
    facts = dict(recipe=recipe._asdict(), frozen=frozen, seed=seed,
                 encoder=str(checkpoint), config=CONFIG_NAME,
                 unreadable=found.unreadable)
    report: Any = report_classifier
    if task == 'segment':
        from .segmentation import report_segmenter as report
    elif task == 'detect':
        from .detection import report_detector as report
    metrics = report(load_model(folder), found, folder, facts)
    return Finetuned(best, folder / CONFIG_NAME, folder, metrics)


@command(required=('out', ))
def predict(folder: PathLike,
            images: Data,
            out: Optional[Annotated[
                PathLike, Output('.csv', '.parquet')]] = None,
            *,
            top_k: Size = 1,
            all_scores: bool = False,
            batch_size: Size = 32,
            window: Optional[Size] = None,
            pictures: Optional[OutputFolder] = None) -> Dict[str, Any]:
    """Predict images with a finished model, and write a table.

    The table has a row for each image: path, class, score, further classes as
    class_2 and score_2, and error, the reason why a file is unreadable. Labels
    are not needed. A segmenter writes masks beside the table, which has their
    paths and the share of each class; masks of GeoTIFF files keep their
    coordinates.

    Example::

        $ cmae predict classifier new_photos --out predictions.csv
        $ cmae predict classifier new --out new.csv --pictures sheets

    Args:
        folder: Folder of `cmae finetune`.
        images: An image, a folder of images, a list, a store or shards.
        out: Table to write, .csv or .parquet. Defaults to None in Python:
            the predictions are returned alone.
        top_k: Number of classes in a row. Defaults to 1.
        all_scores: Add a column for each class.
        batch_size: Images or windows in a batch. Defaults to 32.
        window: Side in pixels of a segmenter's overlapping windows, the size
            of the training images. Defaults to the short side of an image.
        pictures: Folder for a sheet of images of each predicted class, or for
            each image with its mask.

    Returns:
        Dict[str, Any]: ``out``, the number of ``images``, of ``unreadable``
        ones, and of images of each class in ``counts``; without ``out`` also
        ``predictions``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the model cannot be loaded.
        SourceError: If there are no images.
    """
    from .finished_model import load_model
    from .prediction_files import describe, draw_predictions, write_table
    model: Any = load_model(folder)
    if model.task == 'detect':
        if top_k > 1 or all_scores or window is not None:
            raise ArgumentError(
                'a detector has no top_k, all_scores and window')
        from .detection import write_boxes
        return write_boxes(
            None if out is None else Path(out).expanduser(), model,
            Path(images),
            None if pictures is None else Path(pictures).expanduser())
    if model.task == 'segment':
        if top_k > 1 or all_scores:
            raise ArgumentError('a segmenter has no top_k and no all_scores')
        if out is None and pictures is not None:
            raise ArgumentError('pictures of a segmenter need out, a table')
        if out is None:
            return dict(predictions=model.predict(
                Path(images), batch_size, window))
        from .mask_files import write_segments
        done = write_segments(
            Path(out).expanduser(), model, Path(images), batch_size, window,
            None if pictures is None else Path(pictures).expanduser())
        return dict(done, out=str(out))
    if window is not None:
        raise ArgumentError('window is for segmenters; this model is a '
                            'classifier')
    found = model.predict(Path(images), batch_size)
    if out is not None:
        write_table(Path(out).expanduser(), found, model, top_k, all_scores)
    if pictures is not None:
        draw_predictions(model, found, Path(images), Path(pictures))
    result = describe(found)
    if out is None:
        return dict(result, predictions=found)
    return dict(result, out=str(out))
