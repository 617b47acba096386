"""Fine-tuning for semantic segmentation: masks, config, model and scores."""
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from ..config import load_config
from ..datasets.names import encode_name
from ..datasets.source import SourceError, open_source, read_record
from ..dependencies import cpu_count
from ..evaluation.centre_crop import CentreCrop
from ..files import write_file
from ..plain_config import MODEL_TYPES, check_types
from ..visualization import save_grid
from .arguments import ArgumentError, PathLike
from .finetuning import Recipe, apply_recipe
from .labelled_data import (
    PART_NAMES,
    LabelledData,
    Part,
    describe_unreadable,
    draw_few,
    draw_val,
    drop_unreadable,
    spellings,
)
from .mask_files import colours

_BASE = 'segmentation/upernet-mini_coco'
_IMAGES = ('images', 'image', 'imgs', 'img')
_MASKS = ('masks', 'mask', 'labels', 'annotations', 'semantic')
IGNORED = 255
_MOST_SHOWN = 8
# Classes that a finished segmenter's own config may name.
_TYPES = MODEL_TYPES | {
    'EncoderDecoder', 'TransferViT', 'TransferConvViT', 'FCNHead', 'UPerHead',
    'Feature2Pyramid', 'CrossEntropyLoss', 'SegDataPreProcessor'}
_TRANSFORMS = ('LoadImage', 'LoadAnnotations', 'Resize', 'PackSegInputs')


def read_masks(data: PathLike,
               val: Optional[str] = None,
               labels_per_class: Optional[int] = None,
               seed: int = 0) -> LabelledData:
    """Find images and masks of the same names, and check them.

    Masks are images of one channel. ``classes.txt`` beside the folders has the
    name of value i in line i; otherwise each value is a class. 255 is ignored,
    unless masks have the values 0 and 255 alone.

    Args:
        data (str | PathLike): Folder with ``images`` and ``masks``, each with
            ``train`` and ``val`` or not, or ``train/images``, ...
        val (str, optional): Name of the validation part.
        labels_per_class (int, optional): Number of training images of each
            class, counted by the rarest class of an image.
        seed (int): Seed of both draws. Defaults to 0.

    Returns:
        LabelledData: The parts; labels are the classes of each mask.

    Raises:
        ArgumentError: If there are no such folders, a mask is missing or has
            other values, or there are fewer than two classes.
    """
    root = Path(data).expanduser().absolute()
    names = dict(PART_NAMES, **({'val': (val, )} if val else {}))
    parts = {}
    for part, words in names.items():
        pair = _find_folders(root, spellings(words))
        if pair:
            parts[part] = _pair(*pair)
    if not parts:
        pair = _find_folders(root, [''])
        if not pair:
            raise ArgumentError(
                f'{root} has no folders images and masks, with or without '
                'train and val in them')
        parts['train'] = _pair(*pair)
    if 'train' not in parts or val and 'val' not in parts:
        raise ArgumentError(
            f'{root} has no part {val if "train" in parts else "train"}')
    parts, unreadable = drop_unreadable(parts, None)
    parts, classes, label_map = _read_values(root, parts)
    if 'val' not in parts:
        parts['train'], parts['val'] = draw_val(parts['train'], (), seed)
    if labels_per_class is not None:
        parts['train'] = draw_few(parts['train'], classes, labels_per_class,
                                  seed)
    lacking = [c for c, n in parts['train'].counts(classes).items() if not n]
    notes = describe_unreadable(unreadable)
    if lacking:
        notes.append(f'training masks lack {len(lacking)} classes, the first: '
                     f'{encode_name(lacking[0])}')
    return LabelledData(classes, {k: parts[k] for k in names if k in parts},
                        notes, unreadable, 'segment', label_map)


def _find_folders(root: Path, words: Sequence[str]) -> Optional[List[Path]]:
    """Find the folders of images and masks of a part."""
    for word in words:
        for first in (True, False):
            pair = []
            for kinds in (_IMAGES, _MASKS):
                paths = [root / kind / word if first else root / word / kind
                         for kind in spellings(kinds)]
                pair += [p for p in paths if p.is_dir()][:1]
            if len(pair) == 2:
                return pair
    return None


def _pair(images: Path, masks: Path) -> Part:
    """Pair images and masks by their names without suffix."""
    try:
        found, labels = open_source(images), open_source(masks)
    except SourceError as error:
        raise ArgumentError(str(error)) from error
    by_name = {str(Path(name).with_suffix('')): labels.path(i)
               for i, name in enumerate(labels.names)}
    records = []
    for index, name in enumerate(found.names):
        mask = by_name.get(str(Path(name).with_suffix('')))
        if mask is None:
            raise ArgumentError(
                f'{found.path(index)} has no mask of its name in {masks}')
        records.append(dict(img_path=found.path(index), seg_map_path=mask))
    return Part(str(images), records, [[]] * len(records))


def read_mask(path: str) -> np.ndarray:
    """Read a mask: uint8, (H, W); a palette's numbers are its values."""
    with Image.open(path) as image:
        mask = np.asarray(image)
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > 255:
        raise ArgumentError(
            f'{path} must have one channel of values from 0 to 255, but has '
            f'{mask.shape[2] if mask.ndim == 3 else 1} channel(s) of '
            f'{mask.dtype}')
    return mask.astype(np.uint8)


def _read_values(root: Path, parts: Mapping[str, Part]) -> Any:
    """Read the values of all masks, and name the classes."""
    records = [r for part in parts.values() for r in part.records]
    with ThreadPoolExecutor(cpu_count()) as pool:
        values = list(pool.map(
            lambda r: np.unique(read_mask(r['seg_map_path'])).tolist(),
            records))
    used = {v for one in values for v in one}
    if used != {0, IGNORED}:
        used -= {IGNORED}
    file = root / 'classes.txt'
    if file.is_file():
        lines = file.read_text('utf-8').splitlines()
        names = {i: line.strip() for i, line in enumerate(lines)
                 if line.strip()}
        unknown = sorted(used - {*names})
        if unknown:
            raise ArgumentError(
                f'masks have the value {unknown[0]}, but {file} has '
                f'{len(names)} names, the first one for 0')
    else:
        names = {v: f'value {v}' for v in sorted(used)}
    if len(names) < 2:
        raise ArgumentError(
            f'the masks below {root} have one value, {sorted(used)}; a '
            'segmenter needs two classes or more')
    found, start = {}, 0
    for part, old in parts.items():
        stop = start + len(old.records)
        found[part] = old._replace(labels=[
            [names[v] for v in one if v in names]
            for one in values[start:stop]])
        start = stop
    return found, list(names.values()), {
        value: number for number, value in enumerate(names)}


def make_segment_config(encoder: Mapping[str, Any], data: LabelledData,
                        recipe: Recipe, frozen: bool, decoder: str,
                        folder: Path, seed: int,
                        num_workers: Optional[int]) -> Config:
    """Make the config of a segmenter.

    Args:
        encoder (Mapping[str, Any]): See :func:`find_encoder`.
        data (LabelledData): See :func:`read_masks`.
        recipe (Recipe): Epochs and rate.
        frozen (bool): Whether only the decoder is trained.
        decoder (str): 'fcn', two layers on the last features, or 'upernet'.
        folder (Path): Work folder.
        seed (int): Seed of the training.
        num_workers (int, optional): Processes that read images.

    Returns:
        Config: For mmengine's runner.

    Raises:
        ArgumentError: If the encoder is not for 8-bit colours.
    """
    if encoder['images'] is not None:
        raise ArgumentError('segmentation needs an encoder of 8-bit colours')
    width, depth = encoder['width'], encoder['depth']
    if decoder == 'upernet' and depth < 4:
        raise ArgumentError('UPerNet needs an encoder of 4 layers or more')
    cfg = load_config(_BASE)
    size, classes = encoder['backbone']['img_size'], len(data.classes)
    model = cfg.model
    model.data_preprocessor.update(
        mean=encoder['mean'], std=encoder['std'], size=(size, size))
    layers = [depth - 1] if decoder == 'fcn' else [
        depth * (i + 1) // 4 - 1 for i in range(4)]
    model.backbone = dict(
        encoder['backbone'], out_type='featmap', out_indices=layers,
        type=f'mmpretrain.{encoder["backbone"]["type"]}')
    if frozen:
        model.backbone.frozen_stages = depth
    norm = dict(type='BN')
    if decoder == 'fcn':
        model.neck = None
        model.decode_head = dict(
            type='FCNHead', in_channels=width, in_index=0, channels=width,
            num_convs=1, concat_input=False, dropout_ratio=0.1,
            num_classes=classes, norm_cfg=norm, align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False,
                             avg_non_ignore=True))
    else:
        model.neck.update(embed_dim=width)
        model.decode_head.update(
            in_channels=[width] * 4, channels=max(width // 2, 64),
            num_classes=classes)
    model.test_cfg.update(crop_size=(size, size), stride=(size * 2 // 3, ) * 2)
    scale = (4 * size, size)
    load = [dict(type='mmpretrain.LoadImage'),
            dict(type='Resize', scale=scale, keep_ratio=True)]
    masks = dict(type='LoadAnnotations', imdecode_backend='pillow')
    pipelines = dict(
        train=[dict(type='mmpretrain.SeedDraws'), load[0], masks,
               dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.5),
                    keep_ratio=True),
               dict(type='RandomCrop', crop_size=(size, size),
                    cat_max_ratio=0.9),
               dict(type='RandomFlip', prob=0.5),
               dict(type='PackSegInputs')],
        val=[*load, masks, dict(type='PackSegInputs')])
    workers = min(cpu_count(), 8) if num_workers is None else num_workers
    for name in ('train', 'val', 'test'):
        part = name if name in data.parts else 'val'
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        loader.dataset = dict(
            type='ListedSegDataset', ann_file=str(folder / f'{part}.json'),
            test_mode=name != 'train',
            pipeline=pipelines['train' if name == 'train' else 'val'])
    apply_recipe(cfg, recipe, folder, seed, save_best='mIoU')
    for name in ('data_root', 'train_pipeline', 'test_pipeline', 'crop_size',
                 'norm_cfg', 'vit_mini_96'):
        cfg.pop(name, None)
    return cfg


class Segmented(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N'.
        mask (np.ndarray | None): Number of the class of each pixel, uint8,
            (H, W); None for an unreadable image.
        shares (Dict[str, float]): Share of the pixels of each class.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    mask: Optional[np.ndarray]
    shares: Dict[str, float]
    error: str = ''


class FinishedSegmenter(nn.Module):
    """A segmenter with its classes and the preprocessing of images.

    Args:
        model (nn.Module): mmseg's ``EncoderDecoder``.
        classes (Sequence[str]): Names of the classes.
        pipeline (Sequence[dict]): Transforms of evaluation.
    """

    task = 'segment'

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FinishedSegmenter':
        """Build a segmenter by its own config, read as plain data."""
        settings = check_types(cfg['model'], _TYPES)
        settings['backbone']['type'] = (
            f'mmpretrain.{settings["backbone"]["type"]}')
        pipeline = check_types(
            cfg['test_dataloader']['dataset']['pipeline'], _TRANSFORMS,
            'pipeline')
        init_default_scope('mmseg')
        return cls(MODELS.build(ConfigDict(settings)), (), pipeline)

    def __init__(self, model: nn.Module, classes: Sequence[str],
                 pipeline: Sequence[dict]) -> None:
        super().__init__()
        self.model, self.classes = model, list(classes)
        self.count: int = model.decode_head.num_classes
        self.img_size: int = model.backbone.img_size[0]
        self.in_channels, self.images = 3, None
        self.pipeline = [dict(t) for t in pipeline]
        init_default_scope('mmseg')
        self._transforms = [TRANSFORMS.build(t) for t in pipeline[1:]
                            if t['type'] != 'LoadAnnotations']
        init_default_scope('mmpretrain')
        self._reader = CentreCrop(32)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores of each pixel.

        Args:
            images (Tensor): (N, 3, S, S), RGB in 0 to 255.

        Returns:
            Tensor: Probabilities, (N, K, S, S).
        """
        return self._logits(images).softmax(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        images = (images.float() - preprocessor.mean) / preprocessor.std
        logits = self.model(images, mode='tensor')
        return F.interpolate(logits, images.shape[2:], mode='bilinear')

    def predict(self, images: Any, batch_size: int = 32,
                window: Optional[int] = None) -> List[Segmented]:
        """Predict images one by one.

        Args:
            images (Any): See :meth:`FinishedModel.predict`.
            batch_size (int): Number of windows in a batch. Defaults to 32.
            window (int, optional): Side in pixels of overlapping windows,
                whose scores are averaged; each is resized to the encoder's
                images. Defaults to the short side of an image.

        Returns:
            List[Segmented]: One for each image, in their order.
        """
        return [one for one, _ in self.predict_iter(
            images, batch_size, window)]

    def predict_iter(self, images: Any, batch_size: int = 32,
                     window: Optional[int] = None
                     ) -> Iterator[Tuple[Segmented, Optional[np.ndarray]]]:
        """Predict images one by one, see :meth:`predict`.

        Yields:
            tuple: The prediction and the image, RGB, (H, W, 3), or None if it
            is unreadable.
        """
        from .finished_model import name_images
        for name, image in name_images(images):
            try:
                array = self._read(image)
            except Exception as error:  # decoders raise all sorts of errors
                reason = ' '.join(str(error).split()) or type(error).__name__
                yield Segmented(name, None, {}, reason), None
                continue
            mask = self.mask_of(array, batch_size, window)
            counts = np.bincount(mask.ravel(), minlength=len(self.classes))
            yield Segmented(name, mask, {
                c: float(n / mask.size) for c, n in zip(
                    self.classes, counts)}), array[..., ::-1]

    def _read(self, image: Any) -> np.ndarray:
        if isinstance(image, Mapping):
            return self._reader.decode(
                read_record(dict(image)), image['img_path'])
        return self._reader.read(image)

    def mask_of(self, array: np.ndarray, batch_size: int = 32,
                window: Optional[int] = None) -> np.ndarray:
        """Segment an image, (H, W, 3), BGR; give class numbers, (H, W)."""
        if window is not None:
            return self._segment_windows(array, batch_size, window)
        results: Dict[str, Any] = dict(
            img=array, img_shape=array.shape[:2], ori_shape=array.shape[:2])
        for transform in self._transforms:
            results = transform(results)
        with torch.inference_mode():
            found = self.model.test_step(dict(
                inputs=[results['inputs']],
                data_samples=[results['data_samples']]))
        mask: Tensor = found[0].pred_sem_seg.data[0]
        return mask.cpu().numpy().astype(np.uint8)

    def _segment_windows(self, array: np.ndarray, batch_size: int,
                         window: int) -> np.ndarray:
        """Segment an image in overlapping windows, row by row."""
        height, width = array.shape[:2]
        side = min(window, height, width)
        mask = np.empty((height, width), np.uint8)
        lefts, tops = _place_windows(width, side), _place_windows(height, side)
        # The largest sum of logits is that of the largest average.
        sums = torch.zeros(self.count, side, width)
        for top, following in zip(tops, [*tops[1:], height]):
            crops = [array[top:top + side, x:x + side] for x in lefts]
            for x, logits in zip(lefts, self._score_crops(crops, batch_size)):
                sums[..., x:x + side] += logits
            done = following - top
            mask[top:following] = sums[:, :done].argmax(dim=0).numpy()
            sums = F.pad(sums[:, done:], (0, 0, 0, done))
        return mask

    def _score_crops(self, crops: Sequence[np.ndarray],
                     batch_size: int) -> Iterator[Tensor]:
        """Give the logits of square crops in BGR, (K, S, S) each."""
        size = (self.img_size, self.img_size)
        side, device = crops[0].shape[0], next(self.parameters()).device
        for start in range(0, len(crops), batch_size):
            images = np.stack([mmcv.imresize(crop, size)
                               for crop in crops[start:start + batch_size]])
            batch = torch.from_numpy(images[..., ::-1].copy())
            with torch.inference_mode():
                logits = self._logits(batch.permute(0, 3, 1, 2).to(device))
                for one in logits.split(1):
                    yield F.interpolate(one, (side, side), mode='bilinear'
                                        )[0].cpu()


def _place_windows(length: int, side: int) -> List[int]:
    """Give starts of windows that overlap by a third or more."""
    last = length - side
    return [*range(0, last, max(side * 2 // 3, 1)), last]


def report_segmenter(model: FinishedSegmenter, data: LabelledData,
                     folder: Path, facts: Mapping[str, Any]
                     ) -> Dict[str, Any]:
    """Score a segmenter on the validation and test images.

    Args:
        model (FinishedSegmenter): The model.
        data (LabelledData): The images and masks.
        folder (Path): Folder for ``metrics.json`` and a sheet for each part.
        facts (Mapping[str, Any]): Further entries of ``metrics.json``.

    Returns:
        Dict[str, Any]: The content of ``metrics.json``: ``mIoU``, the mean
        over the classes of the masks, and ``accuracy`` of the pixels, both in
        percent, and the IoU of each class in ``per_class``.
    """
    metrics: Dict[str, Any] = dict(
        facts, task='segment', classes=data.classes,
        train=dict(images=len(data.parts['train'].records),
                   list='train.json'))
    numbers = np.full(256, IGNORED, np.uint8)
    for value, number in data.label_map.items():
        numbers[value] = number
    count = len(data.classes)
    for name in ('val', 'test'):
        if name not in data.parts:
            continue
        confusion = np.zeros((count, count), np.int64)
        shown: List[Any] = []
        for record in data.parts[name].records:
            array = model._reader.read(record['img_path'])
            true = numbers[read_mask(record['seg_map_path'])]
            mask = model.mask_of(array)
            valid = true != IGNORED
            confusion += np.bincount(
                true[valid].astype(int) * count + mask[valid],
                minlength=count**2).reshape(count, count)
            if len(shown) < _MOST_SHOWN:
                shown.append((array[..., ::-1], true, mask))
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = confusion.diagonal() / np.maximum(union, 1)
        used = union > 0
        metrics[name] = dict(
            images=len(data.parts[name].records), list=f'{name}.json',
            place=data.parts[name].place, mIoU=100 * float(iou[used].mean()),
            accuracy=100 * float(confusion.trace() / confusion.sum()),
            per_class={c: 100 * float(v) for c, v, u in zip(
                data.classes, iou, used) if u})
        _draw(folder / f'{name}_masks.png', shown, count)
        print(f'{name:<15}mIoU {metrics[name]["mIoU"]:.1f} %, pixel accuracy '
              f'{metrics[name]["accuracy"]:.1f} % on '
              f'{metrics[name]["images"]:,} images', flush=True)
    write_file(folder / 'metrics.json',
               json.dumps(metrics, indent=1, default=str) + '\n')
    return metrics


def _draw(file: Path, shown: Sequence[Any], count: int) -> None:
    """Draw images beside true and predicted masks."""
    palette, side = colours(count), (200, 150)
    columns: Dict[str, List[np.ndarray]] = dict(image=[], true=[],
                                                predicted=[])
    for image, true, mask in shown:
        pictures = (image, palette[true], palette[mask])
        for title, picture in zip(columns, pictures):
            columns[title].append(np.asarray(
                Image.fromarray(np.ascontiguousarray(picture)).resize(side)))
    save_grid(str(file), columns)
