"""Evaluations of a frozen encoder."""
import json
import os
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Callable,
    Dict,
    List,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..config import Overrides
from ..evaluation import KS, LRS, TEMPERATURE
from .arguments import (
    RANDOM,
    ArgumentError,
    BatchSize,
    CfgOptions,
    CheckpointOrRandom,
    ConfigName,
    Count,
    Data,
    Encoder,
    ImgSize,
    Launcher,
    Layers,
    Metavar,
    OutputFolder,
    PathLike,
    Pool,
    Positive,
    Range,
    Size,
    Text,
    command,
    load_libraries,
)

Folders = Annotated[Tuple[PathLike, PathLike], Metavar(('TRAIN', 'VAL'))]
LabelledData = Annotated[Data, Text(
    'Labelled images: class folders in DATA/train and DATA/val (or valid, '
    'validation, dev; test), a CSV file with the columns label and split, a '
    'store or shards.')]
Frozen = Annotated[CheckpointOrRandom, Text(
    'Pre-training checkpoint, exported backbone, or weights of another '
    'library; or "random" with --config.')]
Val = Optional[Annotated[PathLike, Text(
    'Labelled images for the scores: a part of DATA, or other data. Defaults '
    'to the validation part.')]]
Workers = Annotated[Count, Text(
    'Number of data workers of each process.')]
Dtype = Annotated[Literal['float32', 'float16'], Text(
    'Data type of the features.')]
Config = Optional[Annotated[ConfigName, Text(
    'Pre-training config, for random weights or missing settings.')]]
WorkDir = Optional[Annotated[OutputFolder, Text(
    'Folder of evaluations.jsonl, which `cmae report` reads. Defaults to '
    'work_dirs/<data>_eval.')]]
DenseData = Annotated[Data, Text('Folder of images and label maps.')]
Images = Annotated[Folders, Text(
    'Folders of images, lists, stores or shards, in DATA or absolute. '
    'Defaults to images/train and images/val.')]
Maps = Annotated[Folders, Text(
    'Folders of label maps, in DATA or absolute: PNG files with the names of '
    'the images and one integer per pixel. Defaults to maps/train and '
    'maps/val.')]
Ignored = Annotated[Sequence[int], Text(
    'Values of the maps to ignore. Defaults to 0.')]
Most = Optional[Annotated[int, Range(2), Text(
    'The N classes with the most training pixels; others are ignored. '
    'Defaults to all.')]]


def _check(data: PathLike, checkpoint: PathLike, config: Optional[PathLike],
           cfg_options: Overrides, **others: Any) -> None:
    """Check the arguments that depend on each other."""
    if Path(data).suffix == '.py':
        raise ArgumentError(
            f'{data} is a config, but the first argument is the data: use '
            f'DATA CHECKPOINT --config {data}')
    if config is None and checkpoint == RANDOM:
        raise ArgumentError(
            'random weights need --config, which defines the architecture')
    if config is None and cfg_options:
        raise ArgumentError('--cfg-options needs --config')


@command(check=_check, libraries='framework')
def knn(data: LabelledData,
        checkpoint: Frozen,
        *,
        val: Val = None,
        ks: Sequence[Size] = KS,
        temperature: Positive = TEMPERATURE,
        encoder: Encoder = 'online',
        pool: Pool = 'mean',
        layer: Layers = (),
        batch_size: BatchSize = 256,
        num_workers: Workers = 2,
        img_size: ImgSize = None,
        dtype: Dtype = 'float32',
        config: Config = None,
        cfg_options: CfgOptions = (),
        work_dir: WorkDir = None,
        launcher: Launcher = 'none') -> Dict[str, Any]:
    """Evaluate frozen features with a k-NN classifier.

    Prints the accuracy for each number of neighbours. Nothing is trained.

    Example::

        $ cmae knn photos work_dirs/vit-s_photos/epoch_100.pth --json
        $ cmae knn data/cifar10 random --config cifar10/cmae_vit-mini_20e

    Args:
        ks: Numbers of neighbours. Defaults to 5, 10, 20, 50 and 100.
        temperature: Temperature of the votes. Defaults to 0.07.

    Returns:
        Dict[str, Any]: ``top1`` and ``balanced`` accuracy in percent of the
        best number of neighbours, ``best_k``, the ``interval`` of ``top1``,
        and the top-1 accuracy of each number. For images with several labels,
        ``mAP`` instead of accuracies.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate(
        'knn', lambda found: found.knn(ks, temperature), data, checkpoint,
        val=val, encoder=encoder, pool=pool, layer=layer,
        batch_size=batch_size, num_workers=num_workers, img_size=img_size,
        dtype=dtype, config=config, cfg_options=cfg_options,
        work_dir=work_dir, launcher=launcher)


@command(check=_check, libraries='framework')
def linear(data: LabelledData,
           checkpoint: Frozen,
           *,
           val: Val = None,
           lrs: Sequence[Positive] = LRS,
           epochs: Size = 100,
           encoder: Encoder = 'online',
           pool: Pool = 'mean',
           layer: Layers = (),
           batch_size: BatchSize = 256,
           num_workers: Workers = 2,
           img_size: ImgSize = None,
           dtype: Dtype = 'float32',
           config: Config = None,
           cfg_options: CfgOptions = (),
           work_dir: WorkDir = None,
           launcher: Launcher = 'none') -> Dict[str, Any]:
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
        Dict[str, Any]: As of :func:`knn`, with ``best_lr``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """
    return _evaluate(
        'linear', lambda found: found.linear(lrs, epochs), data, checkpoint,
        val=val, encoder=encoder, pool=pool, layer=layer,
        batch_size=batch_size, num_workers=num_workers, img_size=img_size,
        dtype=dtype, config=config, cfg_options=cfg_options,
        work_dir=work_dir, launcher=launcher)


@command(check=_check, libraries='framework')
def low_shot(data: LabelledData,
             checkpoint: Frozen,
             *,
             val: Val = None,
             shots: Sequence[Size] = (1, 5, 10),
             trials: Size = 5,
             splits: Sequence[PathLike] = (),
             inverse_penalty: Positive = 1.,
             encoder: Encoder = 'online',
             pool: Pool = 'mean',
             layer: Layers = (),
             batch_size: BatchSize = 256,
             num_workers: Workers = 2,
             img_size: ImgSize = None,
             dtype: Dtype = 'float32',
             config: Config = None,
             cfg_options: CfgOptions = (),
             work_dir: WorkDir = None,
             launcher: Launcher = 'none') -> Dict[str, Any]:
    """Evaluate frozen features with few labels per class.

    Example::

        $ cmae low-shot photos epoch_100.pth --shots 1 5

    Args:
        shots: Labelled images per class. Defaults to 1, 5 and 10.
        trials: Draws of each number. Defaults to 5.
        splits: Split files of the training images, see `cmae splits`.
        inverse_penalty: The C of scikit-learn. Defaults to 1.

    Returns:
        Dict[str, Any]: Mean top-1 accuracy in percent by number of labels,
        and its standard deviation as ``<number>_std``; top-1 accuracy by name
        of each split file.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """

    def evaluate(found: _Extracted) -> Dict[str, Any]:
        return found.low_shot(shots, trials, splits, inverse_penalty)

    return _evaluate(
        'low-shot', evaluate, data, checkpoint,
        val=val, encoder=encoder, pool=pool, layer=layer,
        batch_size=batch_size, num_workers=num_workers, img_size=img_size,
        dtype=dtype, config=config, cfg_options=cfg_options,
        work_dir=work_dir, launcher=launcher)


@command(check=_check, libraries='framework')
def frozen(data: LabelledData,
           checkpoint: Frozen,
           *,
           val: Val = None,
           ks: Sequence[Size] = KS,
           lrs: Sequence[Positive] = LRS,
           epochs: Size = 100,
           shots: Sequence[Size] = (10, ),
           trials: Size = 5,
           encoder: Encoder = 'online',
           pool: Pool = 'mean',
           layer: Layers = (),
           batch_size: BatchSize = 256,
           num_workers: Workers = 2,
           img_size: ImgSize = None,
           dtype: Dtype = 'float32',
           config: Config = None,
           cfg_options: CfgOptions = (),
           work_dir: WorkDir = None,
           launcher: Launcher = 'none') -> Dict[str, Any]:
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
        Dict[str, Any]: Top-1 accuracy in percent as ``knn`` and ``linear``,
        of the best number of neighbours and rate, and ``low-shot N`` for each
        number of labels; all results of the three commands in ``details``.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        EvaluationDataError: If there are no labelled images.
    """

    def evaluate(found: _Extracted) -> Dict[str, Any]:
        by_knn, by_line = found.knn(ks), found.linear(lrs, epochs)
        few = found.low_shot(shots, trials)
        return dict(
            knn=by_knn['top1'], linear=by_line['top1'],
            **{f'low-shot {count}': few[str(count)] for count in shots},
            details={'knn': by_knn, 'linear': by_line, 'low-shot': few})

    return _evaluate(
        'frozen', evaluate, data, checkpoint,
        val=val, encoder=encoder, pool=pool, layer=layer,
        batch_size=batch_size, num_workers=num_workers, img_size=img_size,
        dtype=dtype, config=config, cfg_options=cfg_options,
        work_dir=work_dir, launcher=launcher)


class _Extracted(NamedTuple):
    """Features of training and validation images; names of the former."""

    train: Any
    val: Any
    names: List[str]

    def __str__(self) -> str:
        return (f'{len(self.train.labels)} training and '
                f'{len(self.val.labels)} validation images')

    def knn(self, ks: Sequence[int],
            temperature: float = TEMPERATURE) -> Dict[str, Any]:
        """Print a table of :func:`knn`, and return it."""
        from ..evaluation.probes import knn_predict, report_sweep
        predicted = knn_predict(*self.train, self.val.features, ks,
                                temperature)
        print(f'k-NN, {self}')
        skipped = [str(k) for k in ks if k not in predicted]
        if skipped:
            print(f'k = {", ".join(skipped)}: skipped, above the number of '
                  'training images')
        return report_sweep('k', predicted, self.val.labels)

    def linear(self, lrs: Sequence[float], epochs: int) -> Dict[str, Any]:
        """Print a table of :func:`linear`, and return it."""
        from ..evaluation.probes import linear_sweep, report_sweep
        predicted = linear_sweep(*self.train, self.val.features, lrs, epochs)
        print(f'linear probe, {self}')
        return report_sweep('lr', predicted, self.val.labels)

    def low_shot(self, shots: Sequence[int], trials: int,
                 splits: Sequence[PathLike] = (),
                 inverse_penalty: float = 1.) -> Dict[str, Any]:
        """Print a table of :func:`low_shot`, and return it."""
        from ..evaluation.probes import report_low_shot
        return report_low_shot(self.train, self.val, self.names, shots,
                               trials, splits, inverse_penalty)


def _evaluate(kind: str, evaluate: Callable[[_Extracted], Dict[str, Any]],
              data: PathLike, checkpoint: PathLike, *, val: Any,
              batch_size: int, num_workers: int, dtype: str, launcher: str,
              work_dir: Optional[PathLike], encoder: str, pool: str,
              layer: Sequence[int], **options: Any) -> Dict[str, Any]:
    """Extract features, evaluate them, and log the result."""
    import numpy as np
    import torch
    from mmengine.dist import is_main_process

    from ..evaluation.data import EvaluationDataError, open_labelled
    from ..evaluation.features import extract_features
    images = open_labelled(data, val)
    if len(np.unique(np.asarray(images.train.labels))) < 2:
        raise EvaluationDataError(
            f'the training images of {data} have a single class; at least two '
            'are needed')
    if kind not in ('knn', 'linear') and np.asarray(
            images.train.labels).ndim == 2:
        raise EvaluationDataError(
            f'the images of {data} have several labels each; use `cmae knn` '
            'or `cmae linear`, which measure mAP')
    _join_processes(launcher)
    if is_main_process():
        # The note of a test part is in the first line.
        print('\n'.join(part.describe() for part in images[::-1]), flush=True)
    model = _load(checkpoint, encoder, layer, pool=pool, **options)
    train, scored = (
        extract_features(model.encode, model.centre_crop, part, batch_size,
                         num_workers, getattr(torch, dtype), progress=True)
        for part in images)
    found = _Extracted(train, scored, list(images.train.names))
    # The tables of several ranks would mix in one output.
    with nullcontext() if is_main_process() else redirect_stdout(None):
        result = evaluate(found)
    return _log(work_dir, kind, checkpoint, data, encoder, layer,
                dict(pool=pool, **result))


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


def _load(checkpoint: PathLike, encoder: Any, layer: Sequence[int], *,
          config: Optional[PathLike] = None, cfg_options: Overrides = (),
          pool: Any = 'mean', img_size: ImgSize = None) -> Any:
    """Load an encoder onto the device, from a config if there is one."""
    from mmengine.device import get_device

    from .encoder import load_encoder, load_encoder_by_config
    if config is None:
        model = load_encoder(checkpoint, encoder, pool=pool,
                             img_size=img_size)
    else:
        load_libraries()
        model = load_encoder_by_config(
            config, checkpoint, encoder, pool=pool, img_size=img_size,
            cfg_options=cfg_options)
    model.use_layers(layer)
    return model.to(get_device())


def _log(work_dir: Optional[PathLike], kind: str, checkpoint: PathLike,
         data: PathLike, encoder: str, layer: Sequence[int],
         result: Mapping[str, Any]) -> Dict[str, Any]:
    """Add a result to ``evaluations.jsonl`` in a folder, and complete it."""
    from mmengine.dist import is_main_process

    from ..files import append_line
    whole: Dict[str, Any] = dict(
        checkpoint=str(checkpoint), data=str(data), encoder=encoder)
    if layer:
        whole['layer'] = list(layer)
    whole.update(result)
    if is_main_process():
        path = whole['checkpoint']
        if path != RANDOM and '://' not in path:
            path = os.path.abspath(path)
        stem = Path(data).expanduser().resolve().stem
        folder = Path(work_dir or Path('work_dirs') / f'{stem}_eval')
        append_line(folder.expanduser() / 'evaluations.jsonl', json.dumps(
            dict(whole, kind=kind, checkpoint=path)))
    return whole


@command(check=_check, libraries='framework')
def dense_knn(data: DenseData,
              checkpoint: Frozen,
              *,
              images: Images = ('images/train', 'images/val'),
              maps: Maps = ('maps/train', 'maps/val'),
              ignore: Ignored = (0, ),
              most: Most = None,
              ks: Sequence[Size] = (1, 5, 20, 50),
              encoder: Encoder = 'online',
              layer: Layers = (),
              img_size: ImgSize = None,
              batch_size: BatchSize = 32,
              config: Config = None,
              cfg_options: CfgOptions = (),
              work_dir: WorkDir = None) -> Dict[str, Any]:
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
        Dict[str, Any]: ``miou`` and ``pixel_accuracy`` in percent of the best
        number of neighbours, ``best``, the ``interval`` of ``miou``, and all
        mIoU by number.

    Raises:
        ArgumentError: If an argument is invalid, or a map is missing.
        CheckpointError: If the checkpoint cannot be used.
    """
    from ..evaluation.probes import knn_predict

    def probe(features: Any, labels: Any, val: Any) -> Dict[str, Any]:
        found = knn_predict(features, labels, val, ks)
        return {f'k = {k}': predicted for k, predicted in found.items()}

    return _segment(
        'dense-knn', probe, data, checkpoint, images=images, maps=maps,
        ignore=ignore, most=most, batch_size=batch_size, work_dir=work_dir,
        encoder=encoder, layer=layer, img_size=img_size, config=config,
        cfg_options=cfg_options)


@command(check=_check, libraries='framework')
def dense_linear(data: DenseData,
                 checkpoint: Frozen,
                 *,
                 images: Images = ('images/train', 'images/val'),
                 maps: Maps = ('maps/train', 'maps/val'),
                 ignore: Ignored = (0, ),
                 most: Most = None,
                 lrs: Sequence[Positive] = LRS,
                 epochs: Size = 50,
                 encoder: Encoder = 'online',
                 layer: Layers = (),
                 img_size: ImgSize = None,
                 batch_size: BatchSize = 32,
                 config: Config = None,
                 cfg_options: CfgOptions = (),
                 work_dir: WorkDir = None) -> Dict[str, Any]:
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
        Dict[str, Any]: As of :func:`dense_knn`, by learning rate.

    Raises:
        ArgumentError: If an argument is invalid, or a map is missing.
        CheckpointError: If the checkpoint cannot be used.
    """
    from ..evaluation.probes import linear_sweep

    def probe(features: Any, labels: Any, val: Any) -> Dict[str, Any]:
        found = linear_sweep(features, labels, val, lrs, epochs)
        return {f'lr = {lr:g}': predicted for lr, predicted in found.items()}

    return _segment(
        'dense-linear', probe, data, checkpoint, images=images, maps=maps,
        ignore=ignore, most=most, batch_size=batch_size, work_dir=work_dir,
        encoder=encoder, layer=layer, img_size=img_size, config=config,
        cfg_options=cfg_options)


def _segment(kind: str, probe: Callable[[Any, Any, Any], Dict[str, Any]],
             data: PathLike, checkpoint: PathLike, *, images: Folders,
             maps: Folders, ignore: Sequence[int], most: Optional[int],
             batch_size: int, work_dir: Optional[PathLike], encoder: str,
             layer: Sequence[int], **options: Any) -> Dict[str, Any]:
    """Extract patch features, classify patches, and log the result."""
    from ..evaluation.dense import (
        classes_of,
        extract_dense,
        pair_files,
        report_dense,
    )
    root = Path(data).expanduser()
    train, val = (pair_files(root / image, root / map_)
                  for image, map_ in zip(images, maps))
    model = _load(checkpoint, encoder, layer, **options)
    classes = classes_of(train, model.img_size, ignore, most)
    fit, scored = (extract_dense(model, pairs, classes, batch_size)
                   for pairs in (train, val))
    device = model.mean.device
    features, labels = fit.labelled(model.patch_size)
    predicted = probe(features.to(device), labels.to(device),
                      scored.features.flatten(0, 1).to(device))
    print(f'{kind}, {len(train)} training and {len(val)} validation images, '
          f'{len(classes)} classes')
    return _log(work_dir, kind, checkpoint, data, encoder, layer,
                report_dense(predicted, scored.maps, len(classes)))
