"""Commands that fine-tune, predict, and export fine-tuned models."""
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from ..dependencies import find_checkpoint, require_dense
from ..image_size import format_size, to_pair, to_size
from .arguments import (RANDOM, ArgumentError, CheckpointOrRandom, Count, Data,
                        ImgSize, Launcher, Output, OutputFolder, Overrides,
                        PathLike, Size, Stats, check_onnx_file, command,
                        interruptible)
from .embedding import check_parquet


class Finetuned(NamedTuple):
    """Result of :func:`finetune`.

    Args:
        checkpoint (Path): The best checkpoint, with the names of the classes.
        config (Path): The config, which ``cmae train`` takes.
        out (Path): The folder, for :func:`load_model` and ``cmae predict``.
        metrics (dict[str, Any]): The content of ``metrics.json``.
    """

    checkpoint: Path
    config: Path
    out: Path
    metrics: dict[str, Any]


@command()
def finetune(data: Data,
             checkpoint: CheckpointOrRandom,
             out: OutputFolder | None = None,
             *,
             task: Literal['classify', 'multilabel', 'segment',
                           'detect'] = 'classify',
             val: str | None = None,
             frozen: bool = False,
             labels_per_class: Size | None = None,
             seed: Count = 0,
             epochs: Size | None = None,
             batch_size: Size | None = None,
             img_size: ImgSize = None,
             num_workers: Count | None = None,
             model: str = 'vit-s',
             decoder: Literal['small', 'large'] = 'small',
             stats: Stats | None = None,
             resume: bool = True,
             cfg_options: Overrides = (),
             launcher: Launcher = 'none') -> Finetuned:
    """Fine-tune a pre-trained encoder on labelled images.

    Writes to --out: config.py, for `cmae train` and mmpretrain's
    tools/train.py; best.pth, the best checkpoint on the validation images;
    metrics.json; confusion matrices; the most confident mistakes. The number
    of labelled images determines learning rate, epochs and augmentation.

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
        checkpoint: Checkpoint of the encoder; a folder of `cmae pretrain`, for
            its last checkpoint; or random, for random weights.
        out: Folder of the model. Defaults to work_dirs/DATA_TASK.
        task: classify: one label per image. multilabel: several in a list, as
            a|b or a;b. segment: a mask of the same name in another folder.
            detect: boxes in COCO files. Defaults to classify.
        val: Name of the validation part, or a path. Defaults to val, valid,
            validation or dev; 20 % of each class if there is none.
        frozen: Train the head only.
        labels_per_class: Number of training images to draw of each class.
            Defaults to all.
        seed: Seed of draws and training. Defaults to 0.
        epochs: Number of epochs. Defaults to the recipe's.
        batch_size: Images in a batch of all processes. Defaults to the
            recipe's.
        num_workers: Number of data workers. Defaults to one for each CPU core,
            at most 8.
        model: Architecture of random weights: a model of `cmae pretrain
            --model`, or a checkpoint or config (.py) with the same sizes.
            Defaults to vit-s.
        decoder: Decoder for segment (two layers or UPerNet) or detect.
            Defaults to small.
        stats: File of `cmae stats` on the images. Defaults to the
            checkpoint's own record.
        resume: Start a new training and move existing checkpoints in --out
            aside.
        cfg_options: Settings of the config to override. Nested keys are
            written with dots.
        launcher: Job launcher. Defaults to none.

    Returns:
        Finetuned: The checkpoint, the config, the folder and the metrics.

    Raises:
        ArgumentError: If an argument or the data cannot be used.
        CheckpointError: If the checkpoint does not fit.
        ConfigError: If an override does not fit.
        OutputInUse: If another process trains in ``out``.
    """
    from mmengine.dist import barrier, is_main_process

    from ..config import apply_options, parse_options
    from ..engine.device import count_processes
    from ..finetuning.data import read_labelled
    from ..finetuning.model import CONFIG_NAME, METRICS_NAME, load_model
    from ..finetuning.recipe import Run, choose_recipe
    from ..finetuning.training import describe, train_model
    name = Path(os.path.abspath(data)).stem
    folder = Path(out or Path('work_dirs') / f'{name}_{task}').absolute()
    is_dense = task in ('segment', 'detect')
    encoder = find_encoder(
        checkpoint, model, None if task == 'detect' else img_size, stats)
    size: Any = img_size if task == 'detect' and img_size else (
        encoder['backbone']['img_size'])
    if is_dense and not isinstance(size, int):
        raise ArgumentError(
            f'the task {task} needs square images, but got '
            f'{format_size(size)}; give their side, img_size (--img-size)')
    images = encoder['images']
    make: Callable[..., Any]
    if task == 'detect':
        require_dense('mmdet', extra='det')
        from ..finetuning.boxes import read_boxes
        from ..finetuning.detector import make_config as make_detector
        side = size if img_size else 4 * size
        found = read_boxes(data, val, labels_per_class, seed, images,
                           (side * 4 // 5, ) * 2)
        make = partial(make_detector, img_size=side)
        batch_size = batch_size or 4
    elif task == 'segment':
        require_dense('mmseg', extra='seg')
        from ..finetuning.masks import read_masks
        from ..finetuning.segmenter import make_config as make
        found = read_masks(data, val, labels_per_class, seed, images,
                           (size * 16 // 5, size * 4 // 5))
    else:
        from ..finetuning.classifier import make_config as make
        found = read_labelled(data, task == 'multilabel', val,
                              labels_per_class, seed, images)
    # Decoders need another learning rate than a linear head.
    recipe = choose_recipe(
        len(found.parts['train'].records), encoder['width'], encoder['depth'],
        frozen and not is_dense, epochs, batch_size)
    run = Run(recipe, folder, frozen, decoder, seed, num_workers,
              count_processes(launcher))
    cfg = make(encoder, found, run)
    apply_options(cfg, parse_options(cfg_options))
    with interruptible(f'the last checkpoint, if there is one, is in {folder};'
                       ' the same command continues'):
        best = train_model(cfg, found, describe(encoder, found, run), resume,
                           launcher)
    if is_main_process():
        load_model(folder).report(found, folder, dict(
            recipe=recipe._asdict(), frozen=frozen, seed=seed,
            encoder=str(checkpoint), config=CONFIG_NAME,
            unreadable=found.unreadable))
        print(f'Fine-tuned: {best}\nTo predict: cmae predict {folder} IMAGES '
              '--out predictions.csv')
    barrier()
    metrics = json.loads((folder / METRICS_NAME).read_text('utf-8'))
    return Finetuned(best, folder / CONFIG_NAME, folder, metrics)


def find_encoder(checkpoint: PathLike, model: str, img_size: ImgSize,
                 stats: PathLike | None) -> dict[str, Any]:
    """Find the config of the encoder and the preprocessing of its images.

    Args:
        checkpoint (str | PathLike): See :func:`finetune`.
        model (str): See :func:`finetune`.
        img_size (int, optional): See :func:`finetune`.
        stats (str | PathLike, optional): See :func:`finetune`.

    Returns:
        dict[str, Any]: ``backbone``, a config; ``mean`` and ``std`` of each
        channel; ``images``, arguments of ``LoadImage``; ``width``, ``depth``.

    Raises:
        CheckpointError: If the file contains no encoder, or the channels do
            not match.
    """
    import torch
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS as REGISTRY

    from .. import checkpoints
    from ..checkpoints.load import fit_encoder, model_of
    from ..config import load_config
    from ..datasets.stats import read_image_stats
    from ..image_config import image_settings, is_plain, name_of, settings_of
    from .encoder import with_preprocessing
    from .pretraining import MODELS
    init_default_scope('mmpretrain')
    if '://' not in str(checkpoint):
        checkpoint = str(find_checkpoint(checkpoint))
    model = str(find_checkpoint(model))
    if checkpoint == RANDOM and (model in MODELS or model.endswith('.py')):
        cfg = load_config(MODELS.get(model, model))
        settings = model_of(cfg)
        backbone = {k: v for k, v in settings['backbone'].items() if k in (
            'arch', 'img_size', 'patch_size', 'patch_sizes', 'in_channels')}
        hybrid = 'ConvViT' in name_of(settings['backbone']['type'])
        backbone['type'] = 'TransferConvViT' if hybrid else 'TransferViT'
        found: dict[str, Any] = dict(
            mean=list(settings['data_preprocessor']['mean']),
            std=list(settings['data_preprocessor']['std']),
            images=image_settings(cfg) or None)
    else:
        source = model if checkpoint == RANDOM else checkpoint
        if not Path(source).exists():
            raise ArgumentError(
                f'model must be one of {", ".join(MODELS)}, a checkpoint or a '
                f'config (.py), but got {model!r}')
        loaded = checkpoints.load_encoder(str(source), img_size=img_size)
        backbone = dict(loaded.config)
        if not stats:
            encoder = with_preprocessing(loaded)
            found = dict(mean=encoder.mean.flatten().tolist(),
                         std=encoder.std.flatten().tolist(),
                         images=encoder.images)
    if stats:
        known = read_image_stats(stats)
        backbone['in_channels'] = known['channels']
        images = settings_of(known)
        found = dict(mean=known['mean'], std=known['std'],
                     images=None if is_plain(images) else images)
    backbone.update(final_norm=False, out_type='avg_featmap', init_cfg=dict(
        type='Pretrained', checkpoint=RANDOM if checkpoint == RANDOM else
        os.path.abspath(checkpoint)))
    if img_size:
        backbone['img_size'] = to_size(to_pair(img_size))
    with torch.device('meta'):
        module = REGISTRY.build(backbone)
    if checkpoint != RANDOM:  # before anything is written
        fit_encoder(module, backbone['init_cfg']['checkpoint'])
    return dict(found, backbone=backbone, width=module.embed_dims,
                depth=module.num_layers)


@command(check=check_parquet, required=('out', ))
def predict(folder: PathLike,
            images: Data,
            out: Annotated[PathLike, Output('.csv', '.parquet')] | None = None,
            *,
            top_k: Size = 1,
            all_scores: bool = False,
            batch_size: Size = 32,
            window: Size | None = None,
            pictures: OutputFolder | None = None) -> dict[str, Any]:
    """Predict images with a fine-tuned model and write a table.

    The table has a row for each image with path, class, score, further classes
    as class_2 and score_2, and error, the reason why a file is unreadable. A
    segmenter writes masks next to the table, and their paths and the share of
    each class to the table. Masks of GeoTIFF files keep the coordinates.

    Example::

        $ cmae predict classifier new_photos --out predictions.csv
        $ cmae predict classifier new --out new.csv --pictures sheets

    Args:
        folder: Folder of `cmae finetune`.
        images: An image, a folder of images, a list, a store or shards.
        out: Table to write, .csv or .parquet. Optional in Python, where the
            predictions are returned.
        top_k: Number of classes in a row. Defaults to 1.
        all_scores: Add a column for each class.
        batch_size: Images or windows in a batch. Defaults to 32.
        window: Side in pixels of overlapping windows for large images; use the
            size of the training images. Masks and class scores are averaged
            over windows; multi-label models use the highest score; boxes are
            merged by non-maximum suppression. Defaults to the whole image.
        pictures: Folder for a contact sheet of each predicted class, or for
            each image with its mask or boxes.

    Returns:
        dict[str, Any]: ``out``, the number of ``images``, of ``unreadable``
        ones, and of images of each class in ``counts``; without ``out`` also
        ``predictions``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the model cannot be loaded.
        SourceError: If there are no images.
    """
    from ..finetuning.model import load_model
    from ..finetuning.predictions import predict_to_files
    table, drawn = (None if path is None else Path(path)
                    for path in (out, pictures))
    return predict_to_files(load_model(folder), Path(images), batch_size,
                            window, table, drawn, top_k, all_scores)


def export_model(folder: PathLike, out: PathLike,
                 dtype: str = 'float32') -> float:
    """Export a fine-tuned model, including its head, to ONNX.

    The input ``images`` is (N, C, S, S), float32, in the units of the images:
    colours as RGB in 0 to 255. The output ``scores`` is (N, K), probabilities
    of the softmax, or of a sigmoid for each class of a multi-label model; of a
    segmenter (N, K, S, S), for one window. A detector takes one image,
    (1, 3, H, W), whose longer side is S, and returns ``boxes`` (M, 4) in
    pixels, ``scores`` (M, ) and ``labels`` (M, ). The metadata contain, as
    JSON, ``classes``, ``task``, ``img_size``, ``short_side`` (the size before
    the centre crop) and ``preprocessing``.

    Args:
        folder (str | PathLike): Folder of ``cmae finetune``.
        out (str | PathLike): The file, ``.onnx``.
        dtype (str): Type of the weights, 'float32' or 'float16'. Defaults to
            'float32'.

    Returns:
        float: The largest difference between outputs of ONNX Runtime and
        torch.

    Raises:
        ArgumentError: If the suffix is not ``.onnx``.
        CheckpointError: If the model cannot be loaded or written, or its
            outputs differ by more than 1e-4 (float16: 0.02), relative to the
            largest value if that is above 1; or of a detector in float16.
        MissingLibrary: If a library for it is not installed.
    """
    check_onnx_file(out)
    from ..finetuning import export
    return export.export_model(folder, out, dtype)
