"""Evaluations of a frozen encoder."""
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..config import Overrides
from ..evaluation import KS, LRS, TEMPERATURE
from ..files import append_line, check_output
from .arguments import (RANDOM, ArgumentError, BatchSize, CfgOptions,
                        CheckpointOrRandom, ConfigName, Count, Data, Encoder,
                        ImgSize, Launcher, Layers, Metavar, OutputFolder,
                        PathLike, Pool, Positive, Range, Size, Text, command,
                        load_libraries)

LabelledData = Annotated[Data, Text(
    'Labelled images: class folders in DATA/train and DATA/val (or valid, '
    'validation, dev; test), a CSV file with the columns label and split, a '
    'store or shards.')]
Frozen = Annotated[CheckpointOrRandom, Text(
    'Checkpoint or folder of a pre-training, an exported encoder, or weights '
    'of another library; or "random" with --config.')]
DenseData = Annotated[Data, Text('Folder of images and label maps.')]
Folders = Annotated[tuple[PathLike, PathLike], Metavar(('TRAIN', 'VAL'))]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of all evaluations."""

    encoder: Encoder = 'online'
    layer: Layers = ()
    img_size: ImgSize = None
    config: Annotated[ConfigName, Text(
        'Pre-training config, for random weights or missing settings.'
        )] | None = None
    cfg_options: CfgOptions = ()
    work_dir: Annotated[OutputFolder, Text(
        'Folder of evaluations.jsonl, which `cmae report` reads. Defaults to '
        'work_dirs/<data>_eval.')] | None = None

    def load(self, checkpoint: PathLike, pool: Any = 'mean') -> Any:
        """Load the encoder onto the device, by the config if there is one."""
        from mmengine.device import get_device

        from .encoder import load_encoder, load_encoder_by_config
        if self.config is None:
            model = load_encoder(checkpoint, self.encoder, pool=pool,
                                 img_size=self.img_size)
        else:
            load_libraries()
            model = load_encoder_by_config(
                self.config, checkpoint, self.encoder, pool=pool,
                img_size=self.img_size, cfg_options=self.cfg_options)
        model.use_layers(self.layer)
        return model.to(get_device())

    def log(self, kind: str, data: PathLike, checkpoint: PathLike,
            result: Mapping[str, Any]) -> dict[str, Any]:
        """Complete a result, and add it to ``evaluations.jsonl``."""
        from mmengine.dist import is_main_process
        layer = dict(layer=list(self.layer)) if self.layer else {}
        whole = dict(checkpoint=str(checkpoint), data=str(data),
                     encoder=self.encoder, **layer, **result)
        if is_main_process():
            path = whole['checkpoint']
            if path != RANDOM and '://' not in path:
                path = os.path.abspath(path)
            append_line(
                _log_folder(data, self.work_dir) / 'evaluations.jsonl',
                json.dumps(dict(whole, kind=kind, checkpoint=path)))
        return whole


@dataclass(frozen=True)
class FeatureOptions(EvaluationOptions):
    """Options of the evaluations of one feature per image."""

    val: Annotated[PathLike, Text(
        'Labelled images for the scores: a part of DATA, or other data. '
        'Defaults to the validation part.')] | None = None
    pool: Pool = 'mean'
    batch_size: BatchSize = 256
    num_workers: Annotated[Count, Text(
        'Number of data workers of each process.')] = 2
    dtype: Annotated[Literal['float32', 'float16'], Text(
        'Data type of the features.')] = 'float32'
    launcher: Launcher = 'none'


@dataclass(frozen=True)
class DenseOptions(EvaluationOptions):
    """Options of the evaluations of patch features."""

    images: Annotated[Folders, Text(
        'Folders of images, lists, stores or shards, in DATA or absolute. '
        'Defaults to images/train and images/val.')
    ] = ('images/train', 'images/val')
    maps: Annotated[Folders, Text(
        'Folders of label maps, in DATA or absolute: files with the names '
        'of the images and one integer per pixel. Defaults to maps/train and '
        'maps/val.')] = ('maps/train', 'maps/val')
    ignore: Annotated[Sequence[int], Text(
        'Values of the maps to ignore. Defaults to 0.')] = (0, )
    most: Annotated[int, Range(2), Text(
        'The N classes with the most training pixels; others are ignored. '
        'Defaults to all.')] | None = None
    batch_size: BatchSize = 32


def _log_folder(data: PathLike, work_dir: PathLike | None) -> Path:
    """Return the folder of ``evaluations.jsonl``."""
    return Path(work_dir or f'work_dirs/{Path(data).resolve().stem}_eval')


def _check(data: PathLike, checkpoint: PathLike, config: PathLike | None,
           cfg_options: Overrides, work_dir: PathLike | None,
           **others: Any) -> None:
    """Check the arguments that depend on each other, and the output."""
    check_output(_log_folder(data, work_dir), is_folder=True)
    if Path(data).suffix == '.py':
        raise ArgumentError(
            f'{data} is a config, but the first argument is the data: use '
            f'DATA CHECKPOINT --config {data}')
    if config is None and checkpoint == RANDOM:
        raise ArgumentError(
            'random weights need --config, which defines the architecture')
    if config is None and cfg_options:
        raise ArgumentError('--cfg-options needs --config')
    for name in ('ks', 'lrs'):
        if not others.get(name, True):
            raise ArgumentError(f'{name} is empty; name one value or more')


@command(check=_check, libraries='framework', options=FeatureOptions)
def knn(data: LabelledData,
        checkpoint: Frozen,
        *,
        ks: Sequence[Size] = KS,
        temperature: Positive = TEMPERATURE,
        **options: Any) -> dict[str, Any]:
    """Evaluate frozen features with a k-NN classifier.

    Prints the accuracy for each number of neighbours. Nothing is trained.

    Example::

        $ cmae knn photos work_dirs/vit-s_photos/epoch_100.pth --json
        $ cmae knn data/cifar10 random --config cifar10/cmae_vit-mini_20e

    Args:
        ks: Numbers of neighbours. Defaults to 5, 10, 20, 50 and 100.
        temperature: Temperature of the votes. Defaults to 0.07.

    Returns:
        dict[str, Any]: ``top1`` and ``balanced`` accuracy in percent of the
        best number of neighbours, ``best_k``, the ``interval`` of ``top1``,
        and the top-1 accuracy of each number. For images with several labels,
        ``mAP`` instead of accuracies.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate('knn', data, checkpoint, options,
                     knn=dict(ks=ks, temperature=temperature))


@command(check=_check, libraries='framework', options=FeatureOptions)
def linear(data: LabelledData,
           checkpoint: Frozen,
           *,
           lrs: Sequence[Positive] = LRS,
           epochs: Size = 100,
           **options: Any) -> dict[str, Any]:
    """Evaluate frozen features with a linear classifier.

    Trains one classifier for each learning rate, on features that are
    extracted once, and prints the accuracy of each.

    Example::

        $ cmae linear photos work_dirs/vit-s_photos/epoch_100.pth --json

    Args:
        lrs: Learning rates for a batch of 256. Defaults to ten from 0.0001
            to 3.
        epochs: Passes over the training features. Defaults to 100.

    Returns:
        dict[str, Any]: As of :func:`knn`, with ``best_lr``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate('linear', data, checkpoint, options,
                     linear=dict(lrs=lrs, epochs=epochs))


@command(check=_check, libraries='framework', options=FeatureOptions)
def low_shot(data: LabelledData,
             checkpoint: Frozen,
             *,
             shots: Sequence[Size] = (1, 5, 10),
             trials: Size = 5,
             splits: Sequence[PathLike] = (),
             inverse_penalty: Positive = 1.,
             **options: Any) -> dict[str, Any]:
    """Evaluate frozen features with few labels per class.

    Example::

        $ cmae low-shot photos epoch_100.pth --shots 1 5

    Args:
        shots: Labelled images per class. Defaults to 1, 5 and 10.
        trials: Draws of each number. Defaults to 5.
        splits: Split files of the training images, see `cmae splits`.
        inverse_penalty: The C of scikit-learn. Defaults to 1.

    Returns:
        dict[str, Any]: Mean top-1 accuracy in percent by number of labels,
        and its standard deviation as ``<number>_std``; top-1 accuracy by name
        of each split file.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate('low-shot', data, checkpoint, options, low_shot=dict(
        shots=shots, trials=trials, splits=splits,
        inverse_penalty=inverse_penalty))


@command(check=_check, libraries='framework', options=FeatureOptions)
def frozen(data: LabelledData,
           checkpoint: Frozen,
           *,
           ks: Sequence[Size] = KS,
           lrs: Sequence[Positive] = LRS,
           epochs: Size = 100,
           shots: Sequence[Size] = (10, ),
           trials: Size = 5,
           **options: Any) -> dict[str, Any]:
    """Evaluate frozen features with k-NN, linear and low-shot.

    The results are those of the three commands, but features are extracted
    only once.

    Example::

        $ cmae frozen photos work_dirs/vit-s_photos/epoch_100.pth --json

    Args:
        ks: Numbers of neighbours. Defaults to 5, 10, 20, 50 and 100.
        lrs: Learning rates of the linear classifier for a batch of 256.
            Defaults to ten from 0.0001 to 3.
        epochs: Its passes over the training features. Defaults to 100.
        shots: Labelled images per class. Defaults to 10.
        trials: Draws of each number. Defaults to 5.

    Returns:
        dict[str, Any]: Top-1 accuracy in percent as ``knn`` and ``linear``,
        of the best number of neighbours and rate, and ``low-shot N`` for each
        number of labels; all results of the three commands in ``details``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate('frozen', data, checkpoint, options, knn=dict(ks=ks),
                     linear=dict(lrs=lrs, epochs=epochs),
                     low_shot=dict(shots=shots, trials=trials))


def _evaluate(kind: str, data: PathLike, checkpoint: PathLike,
              options: Mapping[str, Any], **probes: dict[str, Any]
              ) -> dict[str, Any]:
    """Extract features, run probes by name, and log the result."""
    import torch
    from mmengine.dist import is_main_process

    from ..evaluation.data import open_labelled
    from ..evaluation.features import extract_features, warn_if_equal
    from ..evaluation.probes import check_training_images, report_probes
    given = FeatureOptions(**options)
    images = open_labelled(data, given.val)
    check_training_images(images.train, **probes)
    _join_processes(given.launcher)
    if is_main_process():
        # The note of a test part is in the first line.
        print('\n'.join(part.describe() for part in images[::-1]), flush=True)
    model = given.load(checkpoint, given.pool)
    train, val = (extract_features(
        model.encode, model.centre_crop, part, given.batch_size,
        given.num_workers, getattr(torch, given.dtype), progress=True)
        for part in images)
    # The tables of several ranks would mix in one output.
    with nullcontext() if is_main_process() else redirect_stdout(None):
        warn_if_equal(train.features)
        found = report_probes(train, val, images.train.names, **probes)
    if kind == 'frozen':
        result = dict(
            knn=found['knn']['top1'], linear=found['linear']['top1'],
            **{f'low-shot {count}': found['low-shot'][str(count)]
               for count in probes['low_shot']['shots']}, details=found)
    else:
        result = found[kind]
    return given.log(kind, data, checkpoint, dict(pool=given.pool, **result))


def _join_processes(launcher: str) -> None:
    """Join the processes started by a launcher."""
    if launcher == 'none':
        return
    import torch.distributed as dist
    from mmengine.config import Config
    from mmengine.dist import init_dist

    from ..engine.device import adapt_to_device
    adapt_to_device(Config(dict(launcher=launcher)))  # gloo on CPUs
    if not dist.is_initialized():
        init_dist(launcher)


@command(check=_check, libraries='framework', options=DenseOptions)
def dense_knn(data: DenseData,
              checkpoint: Frozen,
              *,
              ks: Sequence[Size] = (1, 5, 20, 50),
              **options: Any) -> dict[str, Any]:
    """Evaluate frozen patch features with k-NN segmentation.

    Each image is resized to a square. A patch has the most frequent class of
    its labelled pixels, and its prediction applies to all of its pixels. Only
    classes in the maps are scored. Nothing is trained.

    Example::

        $ cmae dense-knn data/mosaics epoch_300.pth
        $ cmae dense-knn ade epoch_300.pth --maps masks/train masks/val

    Args:
        ks: Numbers of neighbours. Defaults to 1, 5, 20 and 50.

    Returns:
        dict[str, Any]: ``miou`` and ``pixel_accuracy`` in percent of the best
        number of neighbours, ``best``, the ``interval`` of ``miou``, and all
        mIoU by number.

    Raises:
        ArgumentError: If an argument is invalid, or a map is missing.
        CheckpointError: If the checkpoint cannot be used.
    """
    return _segment('dense-knn', data, checkpoint, options, ks=ks)


@command(check=_check, libraries='framework', options=DenseOptions)
def dense_linear(data: DenseData,
                 checkpoint: Frozen,
                 *,
                 lrs: Sequence[Positive] = LRS,
                 epochs: Size = 50,
                 **options: Any) -> dict[str, Any]:
    """Evaluate frozen patch features with linear segmentation.

    Each image is resized to a square. A patch has the most frequent class of
    its labelled pixels, and its prediction applies to all of its pixels. Only
    classes in the maps are scored.

    Example::

        $ cmae dense-linear data/mosaics epoch_300.pth

    Args:
        lrs: Learning rates for a batch of 256 patches. Defaults to ten from
            0.0001 to 3.
        epochs: Passes over the training patches. Defaults to 50.

    Returns:
        dict[str, Any]: As of :func:`dense_knn`, by learning rate.

    Raises:
        ArgumentError: If an argument is invalid, or a map is missing.
        CheckpointError: If the checkpoint cannot be used.
    """
    return _segment('dense-linear', data, checkpoint, options, lrs=lrs,
                    epochs=epochs)


def _segment(kind: str, data: PathLike, checkpoint: PathLike,
             options: Mapping[str, Any], ks: Sequence[int] = (),
             **linear: Any) -> dict[str, Any]:
    """Extract patch features, classify patches, and log the result."""
    from ..datasets.source import open_source
    from ..evaluation.dense import (IGNORED, classes_of, extract_dense,
                                    pair_files, patch_labels, read_maps,
                                    report_dense)
    from ..evaluation.probes import check_ks, knn_predict, linear_sweep
    given, root = DenseOptions(**options), Path(data)
    sources = [open_source(root / image) for image in given.images]
    print('\n'.join(source.describe() for source in sources), flush=True)
    train, val = (pair_files(source, open_source(root / map_))
                  for source, map_ in zip(sources, given.maps))
    model = given.load(checkpoint)
    classes = classes_of(train, model.img_size, given.ignore, given.most)
    maps, scored = (read_maps(pairs, model.img_size, classes)
                    for pairs in (train, val))
    labels = patch_labels(maps, model.patch_size)
    check_ks(ks, int((labels != IGNORED).sum()), 'labelled training patches')
    (features, fitted), (queries, tested) = (
        extract_dense(model, pairs, given.batch_size)
        for pairs in (train, val))
    labels, scored = labels[fitted], scored[tested]
    known = labels != IGNORED
    tensors = [part.to(model.mean.device) for part in (
        features[known], labels[known], queries.flatten(0, 1))]
    predicted = {f'k = {k}': found for k, found in knn_predict(
        *tensors, ks).items()} if ks else {
        f'lr = {lr:g}': found for lr, found in linear_sweep(
            *tensors, **linear).items()}
    print(f'{kind}, {len(fitted)} training and {len(tested)} validation '
          f'images, {len(classes)} classes')
    return given.log(kind, data, checkpoint, report_dense(
        predicted, scored, len(classes)))
