"""Fine-tuned models: loading and prediction for all tasks."""
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from ..checkpoints import (CheckpointError, load_state, prefix_errors,
                           read_checkpoint)
from ..config import ArgumentError
from ..datasets.decode import ImageSettings
from ..datasets.listing import IMG_EXTENSIONS
from ..datasets.source import open_record, open_source
from ..dependencies import cpu_count
from ..evaluation.features import CentreCrop, print_skipped, try_reading
from ..files import PathLike, write_file
from ..image_size import to_size
from ..plain_config import (MODEL_TYPES, PlainConfigError, check_types,
                            parse_config)
from .data import LabelledData, Part, describe_narrow

CONFIG_NAME, BEST_NAME, METRICS_NAME = 'config.py', 'best.pth', 'metrics.json'
# Classes of this project and mmpretrain in models of other libraries.
_OURS = ('TransferViT', 'TransferConvViT', 'TransferViTDet', 'SimpleFPN',
         'LN2d')


class Found(NamedTuple):
    """Output of a model for an image.

    Args:
        name (str): Path of the image, or 'image N' for an array.
        result (Any): Result of :meth:`FinetunedModel.infer`; None for an
            unreadable image.
        image (Any): Result of :meth:`FinetunedModel.prepare`; None likewise.
        error (str): Reason why the image is unreadable, '' otherwise.
        source (Any): What the image was read from.
    """

    name: str
    result: Any
    image: Any
    error: str = ''
    source: Any = None


class FinetunedModel(nn.Module):
    """A trained model with its classes and the preprocessing of images.

    Returned by :func:`load_model`.

    Args:
        model (nn.Module): The model of mmpretrain, mmseg or mmdet.
        pipeline (Sequence[dict]): Transforms of evaluation, ``LoadImage``
            first.

    Attributes:
        task (str): 'classify', 'multilabel', 'segment' or 'detect'.
        classes (list[str]): Names of the classes.
        count (int): Number of outputs of the head.
        img_size (int | tuple[int, int]): Side of the encoder's images in
            pixels, or (height, width).
        in_channels (int): Number of channels.
        images (dict[str, Any]): Arguments of ``LoadImage`` for decoding.
    """

    task: str
    scope = 'mmpretrain'
    # Classes and transforms allowed in the model's config.
    types: frozenset[str] = frozenset()
    transforms: tuple[str, ...] = ()
    # Number of images to decode at a time; None for a batch.
    read_at_once: int | None = None

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FinetunedModel':
        """Build a model from its config, parsed as plain data."""
        # The check removes init_cfg, which has a file name.
        settings = dict(cfg['model'], train_cfg=None)
        settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        settings = check_types(settings, MODEL_TYPES | cls.types)
        if cls.scope != 'mmpretrain':
            _add_scope(settings)
        pipeline = check_types(
            cfg['test_dataloader']['dataset']['pipeline'],
            ('LoadImage', *cls.transforms), 'pipeline')
        with DefaultScope.overwrite_default_scope(cls.scope):
            return cls(MODELS.build(ConfigDict(settings)), pipeline)

    def __init__(self, model: nn.Module, pipeline: Sequence[dict]) -> None:
        super().__init__()
        self.model = model
        self.classes: list[str] = []
        self.count: int = 0
        self.img_size: Any = to_size(model.backbone.img_size)
        self.in_channels = len(model.data_preprocessor.mean)
        self.pipeline = [dict(t) for t in pipeline]
        self.images = {k: v for k, v in pipeline[0].items()
                       if k in ImageSettings._fields}
        self.reader = CentreCrop(self.img_size, self.images)
        self._transforms = [TRANSFORMS.build(t) for t in pipeline[1:]
                            if t['type'] != 'LoadAnnotations']

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images, (N, C, H, W), colours as RGB in 0 to 255."""
        preprocessor = self.model.data_preprocessor
        return (images.float() - preprocessor.mean) / preprocessor.std

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def transform(self, array: np.ndarray) -> dict[str, Any]:
        """Apply the transforms of evaluation to a decoded image."""
        results: dict[str, Any] = dict(
            img=array, img_shape=array.shape[:2], ori_shape=array.shape[:2])
        for transform in self._transforms:
            results = transform(results)
        return results

    def test_step(self, array: np.ndarray) -> Any:
        """Run the model's own test step on a decoded image."""
        results = self.transform(array)
        with torch.inference_mode():
            found, = self.model.test_step(dict(
                inputs=[results['inputs']],
                data_samples=[results['data_samples']]))
        return found

    def read(self, image: Any, whole: bool = True,
             windows: bool = False) -> Any:
        """Decode a path, record, array or PIL image.

        Args:
            image (Any): The image.
            whole (bool): See :meth:`CentreCrop.decode`. Defaults to True.
            windows (bool): Likewise. Defaults to False.

        Returns:
            np.ndarray | LargeImage: (H, W, C); colours of 8 bits in BGR.
        """
        if isinstance(image, Mapping):
            return self.reader.decode(
                open_record(dict(image)), image['img_path'], whole, windows)
        return self.reader.read(image, whole, windows)

    def prepare(self, array: np.ndarray, window: int | None) -> Any:
        """Prepare a decoded image in a thread; unchanged by default.

        Raises:
            ValueError: If the image is too narrow to be resized.
        """
        scale = next((tuple(t['scale']) for t in self.pipeline
                      if t['type'] == 'Resize'), None)
        reason = describe_narrow(array, scale) if (
            scale and window is None) else ''
        if reason:
            raise ValueError(f'{reason}; use windows (--window)')
        return array

    def infer(self, images: Sequence[Any], batch_size: int,
              window: int | None) -> Iterator[Any]:
        """Yield the outputs for prepared images."""
        raise NotImplementedError

    def name_result(self, found: Found) -> Any:
        """Convert an output to a prediction for users."""
        raise NotImplementedError

    def measure(self, data: LabelledData, name: str, folder: Path
                ) -> tuple[dict[str, Any], str]:
        """Measure the model on a part, and draw pictures of it.

        Args:
            data (LabelledData): The images, readable ones.
            name (str): Name of the part.
            folder (Path): Folder of the pictures and the annotation files.

        Returns:
            tuple: Entries of ``metrics.json``, and a summary.
        """
        raise NotImplementedError

    def run(self, images: Any, batch_size: int = 32,
            window: int | None = None) -> Iterator[Found]:
        """Read images in threads, and yield the outputs."""
        for name, value in (('batch_size', batch_size), ('window', window)):
            if value is not None and value < 1:
                raise ArgumentError(f'{name} must be 1 or more, but got '
                                    f'{value}')
        named = iter(name_images(images))
        count = self.read_at_once or batch_size
        with ThreadPoolExecutor(cpu_count()) as pool:
            while True:
                batch = list(itertools.islice(named, count))
                if not batch:
                    return
                read = list(pool.map(
                    lambda pair: self._try_read(pair[1], window), batch))
                results = iter(self.infer(
                    [image for image, error in read if not error],
                    batch_size, window))
                for (name, source), (image, error) in zip(batch, read):
                    yield Found(name, None, None, error) if error else Found(
                        name, next(results), image, source=source)

    def _try_read(self, image: Any, window: int | None) -> tuple[Any, str]:
        """Read an image; return the reason if it is unreadable."""
        # Masks and boxes are of the size of the file.
        whole = self.task in ('segment', 'detect')
        return try_reading(lambda: self.prepare(
            self.read(image, whole, window is not None), window))

    def run_part(self, part: Part) -> Iterator[tuple[int, Found]]:
        """Yield numbers and outputs of labelled images.

        Images that have become unreadable since the start of the training are
        skipped and printed.
        """
        skipped = {}
        for number, found in enumerate(self.run(part.records)):
            if found.error:
                skipped[part.records[number]['img_path']] = found.error
            else:
                yield number, found
        print_skipped(skipped)

    def predict(self, images: Any, batch_size: int = 32,
                window: int | None = None) -> list[Any]:
        """Predict images.

        Args:
            images (Any): A path of an image, folder, list, store or shards;
                an array (H, W, C), colours as RGB; a PIL image; or a sequence
                of paths of images, arrays and PIL images.
            batch_size (int): Images or windows of a batch. Defaults to 32.
            window (int, optional): Side in pixels of overlapping windows of
                large images. Defaults to the whole image.

        Returns:
            list[Prediction | Segmented | Detected]: One for each image, in
            their order. Unreadable files have the reason in ``error``.

        Raises:
            FileNotFoundError: If a single path does not exist.
            SourceError: If a folder has no images, or no file of a list
                exists.
        """
        return [self.name_result(found)
                for found in self.run(images, batch_size, window)]

    def report(self, data: LabelledData, folder: Path,
               facts: Mapping[str, Any]) -> dict[str, Any]:
        """Measure the model on the validation and test images.

        Writes ``metrics.json`` and pictures, and prints a line for each part.

        Args:
            data (LabelledData): The images.
            folder (Path): Folder to write to.
            facts (Mapping[str, Any]): Further entries of ``metrics.json``.

        Returns:
            dict[str, Any]: The content of ``metrics.json``.
        """
        metrics: dict[str, Any] = dict(
            facts, task=self.task, classes=self.classes,
            train=dict(images=len(data.parts['train'].records),
                       list='train.json'))
        for name in ('val', 'test'):
            if name not in data.parts:
                continue
            part = data.parts[name]
            found, text = self.measure(data, name, folder)
            metrics[name] = dict(list=f'{name}.json', place=part.place,
                                 **found)
            print(f'{name:<15}{text} on {found["images"]:,} images',
                  flush=True)
        write_file(folder / METRICS_NAME,
                   json.dumps(metrics, indent=1, default=str) + '\n')
        return metrics


def place_windows(shape: Sequence[int], window: int
                  ) -> tuple[int, list[int], list[int]]:
    """Compute positions of windows that overlap by a third or more.

    Args:
        shape (Sequence[int]): Height and width of the image, in pixels.
        window (int): Side of the windows.

    Returns:
        tuple: Side of the windows, at most the image's short side, and their
        tops and lefts.
    """
    side = min(window, *shape[:2])
    tops, lefts = ([*range(0, length - side, max(side * 2 // 3, 1)),
                    length - side] for length in shape[:2])
    return side, tops, lefts


def _add_scope(node: Any) -> None:
    """Add mmpretrain's registry to types in configs of other libraries."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list, tuple)):
            _add_scope(value)
    if isinstance(node, dict) and node.get('type') in _OURS:
        node['type'] = f'mmpretrain.{node["type"]}'


def name_images(images: Any) -> Iterable[tuple[str, Any]]:
    """Return the name and the source of each image."""
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_file() and not _is_list(path):
            return [(str(path), path)]
        source = open_source(path, allow_missing=True)
        print_log(f'{source.describe()}.', logger='current')
        return ((source.record(i)['img_path'], source.record(i))
                for i in range(len(source)))
    if isinstance(images, np.ndarray) and images.ndim in (2, 3) or (
            not isinstance(images, (Sequence, Iterator, np.ndarray))):
        images = [images]
    return ((str(image) if isinstance(image, (str, Path)) else
             f'image {number}', image)
            for number, image in enumerate(images))


def _is_list(file: Path) -> bool:
    """Return whether a file is a list of images, not an image."""
    suffix = file.suffix.lower()
    if suffix in IMG_EXTENSIONS:
        return False
    with file.open('rb') as content:
        return suffix in ('.txt', '.csv', '.tsv') or (
            b'\0' not in content.read(4096))


def _class_of(kind: str) -> Any:
    """Return the ``FinetunedModel`` class of a registered model."""
    if kind == 'EncoderDecoder':
        from .segmenter import FinetunedSegmenter
        return FinetunedSegmenter
    if kind in ('FasterRCNN', 'MaskRCNN'):
        from .detector import FinetunedDetector
        return FinetunedDetector
    from .classifier import FinetunedClassifier
    return FinetunedClassifier


def load_model(folder: PathLike) -> Any:
    """Load a model of :func:`~cmae_mm.finetune`.

    Nothing in the folder is executed: the config is parsed as plain data, its
    classes must be on a list, and weights are loaded safely.

    Example::

        model = cmae_mm.load_model('classifier')
        for found in model.predict('photos'):
            print(found.path, found.label, found.score)

    Args:
        folder (str | PathLike): With ``config.py`` and ``best.pth``.

    Returns:
        FinetunedModel: In evaluation mode, on the GPU if there is one.

    Raises:
        CheckpointError: If a file is missing or cannot be used.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f'there is no folder {folder}')
    for name in (CONFIG_NAME, BEST_NAME):
        if not (path / name).is_file():
            raise CheckpointError(
                f'{folder} has no {name}; use a folder of a finished `cmae '
                'finetune`')
    config = path / CONFIG_NAME
    try:
        cfg = parse_config(config.read_text('utf-8'))
        kind = _class_of(cfg['model']['type'])
        model: FinetunedModel = kind.from_config(cfg)
    except (PlainConfigError, OSError, LookupError, TypeError, ValueError,
            AssertionError) as error:
        raise CheckpointError(
            f'{config} is not a config of `cmae finetune`: {error}') from error
    file = path / BEST_NAME
    with prefix_errors(file):
        state, meta = read_checkpoint(file)
        load_state(model.model, state)
        classes = (meta.get('dataset_meta') or {}).get('classes')
        if classes is None or len(classes) != model.count:
            raise CheckpointError(
                f'it has {len(classes or ())} class names, but its head has '
                f'{model.count}')
    model.classes = list(classes)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    return model.eval().to(device)
