"""Finished models: loading, predicting and exporting them."""
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import (
    CheckpointError,
    export_classifier,
    load_state,
    naming,
    read_checkpoint,
)
from ..checkpoints.onnx_export import write_onnx
from ..datasets.names import encode_name
from ..datasets.source import open_source, read_record
from ..dependencies import cpu_count
from ..evaluation.centre_crop import CentreCrop
from ..plain_config import (
    MODEL_TYPES,
    PlainConfigError,
    check_types,
    parse_config,
)
from ..visualization import fitting_scale, save_grid
from .arguments import PathLike, check_onnx_file

CONFIG_NAME, BEST_NAME = 'config.py', 'best.pth'
# Classes that a finished model's own config may name.
CLASSIFIER_TYPES = MODEL_TYPES | {
    'ImageClassifier', 'TransferViT', 'TransferConvViT', 'LinearClsHead',
    'MultiLabelLinearClsHead', 'ClsBatchNormNeck', 'LabelSmoothLoss',
    'CrossEntropyLoss', 'ChannelClsDataPreprocessor', 'ClsDataPreprocessor'}
_TRANSFORMS = ('LoadImage', 'ResizeImage', 'CenterCrop', 'PackInputs')
# A label of a multi-label model has at least this score.
THRESHOLD = 0.5


class Prediction(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N' for an array.
        label (str | List[str] | None): The class; of a multi-label model the
            list of classes with a score of 0.5 or more; None for an unreadable
            image.
        score (float): Score of the class; of several the highest.
        scores (Dict[str, float]): Score of each class, the highest first.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    label: Union[str, List[str], None]
    score: float
    scores: Dict[str, float]
    error: str = ''


class FinishedModel(nn.Module):
    """A classifier with its classes and the preprocessing of images.

    :func:`load_model` makes it.

    Args:
        model (ImageClassifier): The classifier.
        classes (Sequence[str]): Names of the classes.
        pipeline (Sequence[dict]): Transforms of evaluation, ``LoadImage``
            first.

    Attributes:
        task (str): 'classify' or 'multilabel'.
        classes (List[str]): Names of the classes.
        img_size (int): Side of the images in pixels.
        in_channels (int): Number of channels.
    """

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FinishedModel':
        """Build a model by its own config, read as plain data."""
        # Mixing of images is for training alone. init_cfg, which names a
        # file, is left out by the check.
        settings = check_types(
            {k: v for k, v in cfg['model'].items() if k != 'train_cfg'},
            CLASSIFIER_TYPES)
        settings['data_preprocessor'] = check_types(
            cfg['data_preprocessor'], CLASSIFIER_TYPES, 'data_preprocessor')
        pipeline = check_types(
            cfg['test_dataloader']['dataset']['pipeline'], _TRANSFORMS,
            'pipeline')
        init_default_scope('mmpretrain')
        return cls(MODELS.build(settings), (), pipeline)

    def __init__(self, model: nn.Module, classes: Sequence[str],
                 pipeline: Sequence[dict]) -> None:
        super().__init__()
        self.model = model
        self.classes = list(classes)
        self.count: int = model.head.num_classes
        kind = type(model.head).__name__
        self.task = 'multilabel' if 'MultiLabel' in kind else 'classify'
        self.img_size: int = model.backbone.img_size[0]
        self.in_channels = len(model.data_preprocessor.mean)
        self.pipeline = [dict(t) for t in pipeline]
        self.images = {k: v for k, v in pipeline[0].items() if k != 'type'}
        self.crop = CentreCrop(self.img_size, self.images,
                               pipeline=pipeline[1:])

    def forward(self, images: Tensor) -> Tensor:
        """Compute the score of each class.

        Args:
            images (Tensor): (N, C, S, S), in the units of the images: colours
                as RGB in 0 to 255.

        Returns:
            Tensor: Probabilities, (N, K): of the softmax, or of a sigmoid for
            each class of a multi-label model.
        """
        preprocessor = self.model.data_preprocessor
        images = (images.float() - preprocessor.mean) / preprocessor.std
        logits = self.model(images, mode='tensor')
        if self.task == 'multilabel':
            return logits.sigmoid()
        return logits.softmax(dim=1)

    def predict(self, images: Any, batch_size: int = 32) -> List[Prediction]:
        """Predict images.

        Args:
            images (Any): A path of an image, folder, list, store or shards;
                an array (H, W, C), colours as RGB; a PIL image; or a sequence
                of paths of images, arrays and PIL images.
            batch_size (int): Images of a batch. Defaults to 32.

        Returns:
            List[Prediction]: One for each image, in their order. Unreadable
            files have the reason in ``error``.

        Raises:
            FileNotFoundError: If a single path does not exist.
            SourceError: If a folder has no images, or a list names none that
                exist.
        """
        return list(self.predict_iter(images, batch_size))

    def predict_iter(self, images: Any,
                     batch_size: int = 32) -> Iterator[Prediction]:
        """Predict images batch by batch, see :meth:`predict`."""
        for names, crops, errors in self.read(images, batch_size):
            scores = iter(self.score(crops))
            for name, error in zip(names, errors):
                yield Prediction(name, None, 0., {}, error) if error else (
                    self._to_prediction(name, next(scores)))

    def score(self, crops: Sequence[Tensor]) -> np.ndarray:
        """Compute the scores of crops, float32, (N, K)."""
        if not len(crops):
            return np.empty((0, len(self.classes)), np.float32)
        device = next(self.parameters()).device
        with torch.inference_mode():
            return self(torch.stack(list(crops)).to(device)).cpu().numpy()

    def read(self, images: Any, batch_size: int
             ) -> Iterator[Tuple[List[str], List[Tensor], List[str]]]:
        """Decode and crop images in threads.

        Yields:
            tuple: Names, crops of the readable ones, and the reason for each
            name why it is unreadable, '' otherwise.
        """
        named = iter(name_images(images))
        with ThreadPoolExecutor(cpu_count()) as pool:
            while True:
                batch = list(itertools.islice(named, batch_size))
                if not batch:
                    return
                found = list(pool.map(self._load, [i for _, i in batch]))
                yield ([name for name, _ in batch],
                       [x for x in found if isinstance(x, Tensor)],
                       ['' if isinstance(x, Tensor) else x for x in found])

    def _load(self, image: Any) -> Union[Tensor, str]:
        """Decode and crop an image; give the reason if it is unreadable."""
        try:
            if isinstance(image, Mapping):
                array = self.crop.decode(
                    read_record(dict(image)), image['img_path'])
            else:
                array = self.crop.read(image)
            return self.crop(array)
        except Exception as error:  # decoders raise all sorts of errors
            reason = (error.strerror if isinstance(error, OSError) else None
                      ) or str(error)
            return ' '.join(reason.split()) or type(error).__name__

    def _to_prediction(self, name: str, scores: np.ndarray) -> Prediction:
        order = np.argsort(-scores, kind='stable')
        ranked = {self.classes[i]: float(scores[i]) for i in order}
        best = next(iter(ranked))
        label: Any = best
        if self.task == 'multilabel':
            label = [c for c, s in ranked.items() if s >= THRESHOLD]
        return Prediction(name, label, ranked[best], ranked)


def name_images(images: Any) -> Iterable[Tuple[str, Any]]:
    """Give each image a name, and what to read it from."""
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_file() and path.suffix.lower() not in (
                '.txt', '.csv', '.tsv'):
            return [(str(path), path)]
        source = open_source(path, allow_missing=True)
        return ((source.record(i)['img_path'], source.record(i))
                for i in range(len(source)))
    if isinstance(images, np.ndarray) and images.ndim in (2, 3) or (
            not isinstance(images, (Sequence, Iterator, np.ndarray))):
        images = [images]
    return ((str(image) if isinstance(image, (str, Path)) else
             f'image {number}', image)
            for number, image in enumerate(images))


def load_model(folder: PathLike) -> FinishedModel:
    """Load a model that :func:`finetune` has made.

    Nothing in the folder is executed: the config is read as plain data, its
    classes are looked up in a list, and the weights are read safely.

    Example::

        model = cmae_mm.load_model('classifier')
        for found in model.predict('photos'):
            print(found.path, found.label, found.score)

    Args:
        folder (str | PathLike): With ``config.py`` and ``best.pth``.

    Returns:
        FinishedModel: In evaluation mode, on the GPU if there is one.

    Raises:
        CheckpointError: If a file is missing or cannot be used.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f'there is no folder {folder}')
    for name in (CONFIG_NAME, BEST_NAME):
        if not (path / name).is_file():
            raise CheckpointError(
                f'{folder} has no {name}: name a folder that `cmae finetune` '
                'has finished')
    config = path / CONFIG_NAME
    try:
        cfg = parse_config(config.read_text('utf-8'))
        if cfg['model']['type'] == 'EncoderDecoder':
            from .segmentation import FinishedSegmenter
            model: Any = FinishedSegmenter.from_config(cfg)
        elif cfg['model']['type'] == 'FasterRCNN':
            from .detection import FinishedDetector
            model = FinishedDetector.from_config(cfg)
        else:
            model = FinishedModel.from_config(cfg)
    except (PlainConfigError, OSError, KeyError, TypeError, ValueError,
            AssertionError) as error:
        raise CheckpointError(
            f'{config} is no config of `cmae finetune`: {error}') from error
    file = path / BEST_NAME
    with naming(file):
        state, meta = read_checkpoint(file)
        load_state(model.model, state)
        classes = (meta.get('dataset_meta') or {}).get('classes')
        if classes is None or len(classes) != model.count:
            raise CheckpointError(
                f'it names {len(classes or ())} classes, but its head has '
                f'{model.count}')
    model.classes = list(classes)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    return model.eval().to(device)


def export_model(folder: PathLike, out: PathLike,
                 dtype: str = 'float32') -> float:
    """Write a finished model as an ONNX file: the whole model with its head.

    The input ``images`` is (N, C, S, S), float32, in the units of the images:
    colours as RGB in 0 to 255. The output ``scores`` is (N, K), probabilities
    of the softmax, or of a sigmoid for each class of a multi-label model; of a
    segmenter (N, K, S, S), for one window. The metadata hold, as JSON,
    ``classes``, ``task``, ``img_size``, ``short_side``, that images are
    resized to before the centre crop, and ``preprocessing``.

    Args:
        folder (str | PathLike): Folder of ``cmae finetune``.
        out (str | PathLike): The file, ``.onnx``.
        dtype (str): Type of the weights, 'float32' or 'float16'. Defaults to
            'float32'.

    Returns:
        float: The largest difference between scores of ONNX Runtime and
        torch.

    Raises:
        ArgumentError: If the ending is another.
        CheckpointError: If the model cannot be loaded or written, or its
            scores differ by more than 1e-4 (float16: 0.02).
        MissingLibrary: If a library for it is not installed.
    """
    check_onnx_file(out)
    model = load_model(folder).cpu()
    if model.task == 'detect':
        raise CheckpointError(
            f'{folder} is a detector, which is not written as ONNX; mmdeploy '
            'converts it')
    model.names = ('scores', )

    def images(count: int) -> Tensor:
        preprocessor = model.model.data_preprocessor
        generator = torch.Generator().manual_seed(count)
        noise = torch.randn(count, model.in_channels, model.img_size,
                            model.img_size, generator=generator)
        return noise * preprocessor.std + preprocessor.mean

    difference = write_onnx(model, images, out, dict(
        classes=model.classes,
        task=model.task,
        img_size=model.img_size,
        channels=model.in_channels,
        short_side=_short_side(model),
        preprocessing=model.pipeline,
        images=model.images or 'RGB, 0 to 255',
        outputs=dict(scores=dict(
            classify='softmax', multilabel='sigmoid of each class',
            segment='softmax of each pixel')[model.task])), dtype)
    print(f'{out}: {len(model.classes)} classes; scores of ONNX Runtime and '
          f'torch differ by {difference:.1e} at most')
    return difference


def export_classifier_of(folder: PathLike, out: PathLike, to: str) -> None:
    """Write a finished classifier for timm or transformers.

    Args:
        folder (str | PathLike): Folder of ``cmae finetune``.
        out (str | PathLike): A folder, or for timm also a file.
        to (str): 'timm' or 'hf'.

    Raises:
        CheckpointError: If the model cannot be loaded or written.
    """
    model = load_model(folder).cpu()
    if model.task == 'segment':
        raise CheckpointError(
            f'{folder} is a segmenter, which is exported to ONNX alone')
    export_classifier(model.model, str(out), to, model.classes, model.images,
                      _short_side(model), recipe=str(folder))


def _short_side(model: FinishedModel) -> Any:
    """Return the length that the short side of an image is resized to."""
    return next((t['scale'] for t in model.pipeline
                 if t['type'] == 'ResizeImage'), None)


def draw_crops(model: FinishedModel, file: Path, title: str,
               images: Sequence[Tuple[Any, str]]) -> None:
    """Draw images as the model sees them, with a line of text below each.

    Args:
        model (FinishedModel): The model.
        file (Path): PNG file.
        title (str): Title of the sheet.
        images (Sequence[tuple]): Images or records, and a text for each.
    """
    load: Callable = partial(_to_picture, model)
    pictures = [load(image) for image, _ in images]
    save_grid(file, {title: pictures},
              scale=fitting_scale(model.img_size, 200), per_row=5,
              labels=[encode_name(text) for _, text in images])


def _to_picture(model: FinishedModel, image: Any) -> np.ndarray:
    """Give an image as RGB, uint8, (S, S, 3)."""
    crop = model._load(image)
    assert isinstance(crop, Tensor), crop
    crop = crop.float()
    if crop.shape[0] != 3:
        crop = crop.mean(0, keepdim=True).expand(3, -1, -1)
    if model.crop.settings.dtype != 'uint8':
        low, high = crop.min(), crop.max()
        crop = (crop - low) / (high - low).clamp_min(1e-12) * 255
    return crop.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
