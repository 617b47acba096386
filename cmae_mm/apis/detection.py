"""Fine-tuning for detection: COCO files, config, model and scores."""
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import (
    METRICS,
    MODELS,
    TRANSFORMS,
    init_default_scope,
)
from PIL import Image, ImageDraw
from torch import nn

from ..config import load_config
from ..datasets.names import encode_name
from ..datasets.source import read_record
from ..dependencies import cpu_count, require_dense
from ..evaluation.centre_crop import CentreCrop
from ..files import write_file
from ..models import TransferViT
from ..plain_config import MODEL_TYPES, check_types
from ..visualization.image_grid import font_for, save_picture
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
)
from .mask_files import colours
from .prediction_files import write_columns

_BASE = 'detection/vitdet-mini_mask-rcnn_coco'
# Boxes below these scores are not written, and not drawn.
_MIN_SCORE, _MIN_DRAWN = 0.05, 0.3
# Classes that a finished detector's own config may name.
_TYPES = MODEL_TYPES | {
    'FasterRCNN', 'TransferViTDet', 'SimpleFPN', 'Float32RPNHead',
    'StandardRoIHead', 'SingleRoIExtractor', 'RoIAlign', 'Shared2FCBBoxHead',
    'DetDataPreprocessor', 'AnchorGenerator', 'DeltaXYWHBBoxCoder',
    'CrossEntropyLoss', 'L1Loss', 'nms'}
_TRANSFORMS = ('LoadImage', 'LoadAnnotations', 'Resize', 'Pad',
               'PackDetInputs')


def read_boxes(data: PathLike, val: Optional[str] = None,
               labels_per_class: Optional[int] = None,
               seed: int = 0) -> LabelledData:
    """Find COCO files and their images, and check them.

    Args:
        data (str | PathLike): Folder with ``annotations/*train*.json``, or
            the files beside it, and the images.
        val (str, optional): Name of the validation part.
        labels_per_class (int, optional): Number of training images of each
            class, counted by the rarest class of an image.
        seed (int): Seed of both draws. Defaults to 0.

    Returns:
        LabelledData: The parts; records have ``boxes``, annotations of COCO.

    Raises:
        ArgumentError: If there are no such files, images are missing, or
            parts have other categories.
    """
    require_dense('mmdet', extra='det')
    root = Path(data).expanduser().absolute()
    names = dict(PART_NAMES, **({'val': (val, )} if val else {}))
    found = sorted([*root.glob('annotations/*.json'), *root.glob('*.json')])
    parts: Dict[str, Part] = {}
    classes: List[str] = []
    for part, words in names.items():
        pattern = f'(^|[^a-z])({"|".join(map(re.escape, words))})([^a-z]|$)'
        files = [f for f in found if re.search(pattern, f.stem, re.I)]
        files = [f for f in files if 'instances' in f.stem] or files
        if len(files) > 1:
            raise ArgumentError(
                f'{root} has {len(files)} files for {part}: '
                f'{", ".join(f.name for f in files)}')
        if files:
            parts[part], its = _read_coco(root, files[0])
            if classes and its != classes:
                raise ArgumentError(
                    f'{files[0]} has other categories than the part train')
            classes = its
    if 'train' not in parts or val and 'val' not in parts:
        raise ArgumentError(
            f'{root} has no COCO file of the part '
            f'{val if "train" in parts else "train"}, such as '
            'annotations/instances_train.json')
    parts, unreadable = drop_unreadable(parts, None)
    if 'val' not in parts:
        parts['train'], parts['val'] = draw_val(parts['train'], (), seed)
    if labels_per_class is not None:
        parts['train'] = draw_few(parts['train'], classes, labels_per_class,
                                  seed)
    notes = describe_unreadable(unreadable)
    lacking = [c for c, n in parts['train'].counts(classes).items() if not n]
    if lacking:
        notes.append(f'training images lack {len(lacking)} classes, the '
                     f'first: {encode_name(lacking[0])}')
    return LabelledData(classes, {k: parts[k] for k in names if k in parts},
                        notes, unreadable, 'detect')


def _read_coco(root: Path, file: Path) -> Any:
    """Read a COCO file; give a part and the names of its categories."""
    try:
        content = json.loads(file.read_text('utf-8'))
        categories = {c['id']: c['name'] for c in content['categories']}
        boxes: Dict[Any, List[dict]] = {i['id']: [] for i in content['images']}
        for one in content['annotations']:
            boxes[one['image_id']].append({
                k: one.get(k, 0)
                for k in ('bbox', 'area', 'iscrowd', 'category_id')})
            one['name'] = categories[one['category_id']]
        first = content['images'][0]['file_name']
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArgumentError(
            f'{file} is no COCO file of boxes ({error!r})') from error
    places = sorted([root / 'images', root, file.parent, *(
        p for p in [*root.glob('*'), *root.glob('images/*')] if p.is_dir())])
    place = next((p for p in places if (p / first).is_file()), None)
    if place is None:
        raise ArgumentError(f'{file} names {first}, which no folder of {root} '
                            'has')
    numbers = {key: i for i, key in enumerate(categories)}
    names, records, labels = [*categories.values()], [], []
    for image in content['images']:
        path = place / image['file_name']
        if not path.is_file():
            raise ArgumentError(f'{file} names {image["file_name"]}, which '
                                f'{place} does not have')
        its = [dict(b, category_id=numbers[b['category_id']])
               for b in boxes[image['id']]]
        records.append(dict(img_path=str(path), width=image['width'],
                            height=image['height'], boxes=its))
        labels.append(sorted({names[b['category_id']] for b in its}))
    return Part(str(file), records, labels), names


def make_detect_config(encoder: Mapping[str, Any], data: LabelledData,
                       recipe: Recipe, frozen: bool, folder: Path, seed: int,
                       num_workers: Optional[int],
                       img_size: Optional[int] = None) -> Config:
    """Make the config of a detector: ViTDet with a small Faster R-CNN.

    Args:
        encoder (Mapping[str, Any]): See :func:`find_encoder`.
        data (LabelledData): See :func:`read_boxes`.
        recipe (Recipe): Epochs and rate.
        frozen (bool): Whether the encoder is kept.
        folder (Path): Work folder.
        seed (int): Seed of the training.
        num_workers (int, optional): Processes that read images.
        img_size (int, optional): Side of the images. Defaults to four times
            the encoder's.

    Returns:
        Config: For mmengine's runner.

    Raises:
        ArgumentError: If the encoder is no ViT for 8-bit colours.
    """
    backbone, depth = encoder['backbone'], encoder['depth']
    if encoder['images'] is not None or backbone['type'] != 'TransferViT':
        raise ArgumentError('detection needs a ViT encoder of 8-bit colours')
    cfg = load_config(_BASE)
    arch, patch = backbone['arch'], backbone.get('patch_size', 16)
    if not isinstance(arch, Mapping):
        arch = TransferViT.arch_zoo[arch]
    step = 4 * patch
    size = -(-(img_size or 4 * backbone['img_size']) // step) * step
    model, classes = cfg.model, len(data.classes)
    model.type = 'FasterRCNN'
    model.pop('_scope_', None)
    model.data_preprocessor.update(
        mean=encoder['mean'], std=encoder['std'], pad_mask=False)
    model.backbone.update(
        img_size=size, patch_size=patch, init_cfg=backbone['init_cfg'],
        frozen_stages=depth if frozen else -1, arch=dict(
            arch, global_attn_indexes=[
                depth * (i + 1) // 4 - 1 for i in range(4)][-depth:]))
    model.neck.in_channels = encoder['width']
    strides = [max(patch * 2**i // 4, 1) for i in range(5)]
    model.rpn_head.anchor_generator.strides = strides
    model.roi_head.bbox_head.num_classes = classes
    model.roi_head.bbox_roi_extractor.update(
        featmap_strides=strides[:4], finest_scale=max(56 * patch // 16, 1))
    for name in ('mask_head', 'mask_roi_extractor'):
        model.roi_head.pop(name)
    model.test_cfg.rcnn.score_thr = 1e-3
    boxes = dict(type='LoadAnnotations', with_bbox=True)
    load = dict(type='mmpretrain.LoadImage')
    for name in ('train', 'val', 'test'):
        part = name if name in data.parts else 'val'
        loader = cfg[f'{name}_dataloader']
        workers = min(cpu_count(), 8) if num_workers is None else num_workers
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        pipeline = loader.dataset.pipeline
        for index, transform in enumerate(pipeline):
            if transform.type == 'LoadImageFromFile':
                pipeline[index] = load
            elif transform.type == 'LoadAnnotations':
                pipeline[index] = boxes
            elif 'scale' in transform:
                transform.scale = (size, size)
            elif transform.type == 'Pad':
                transform.size = (size, size)
            elif 'crop_size' in transform:
                transform.crop_size = (size, size)
        loader.dataset.update(
            ann_file=str(folder / f'{part}.json'), data_root='',
            data_prefix=dict(img=''), metainfo=dict(classes=data.classes))
        if name != 'train':
            cfg[f'{name}_evaluator'].update(
                ann_file=str(folder / f'{part}.json'), metric='bbox')
    apply_recipe(cfg, recipe, folder, seed, save_best='coco/bbox_mAP')
    for name in ('data_root', 'train_pipeline', 'test_pipeline', 'image_size',
                 'norm_cfg', 'vit_mini_96'):
        cfg.pop(name, None)
    return cfg


class Detected(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N'.
        boxes (List[tuple]): Class, score, and x1, y1, x2, y2 in pixels, the
            highest score first.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    boxes: List[Any]
    error: str = ''


class FinishedDetector(nn.Module):
    """A detector with its classes and the preprocessing of images.

    Args:
        model (nn.Module): mmdet's ``FasterRCNN``.
        pipeline (Sequence[dict]): Transforms of evaluation.
    """

    task = 'detect'

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FinishedDetector':
        """Build a detector by its own config, read as plain data."""
        require_dense('mmdet', extra='det')
        settings = check_types({k: v for k, v in cfg['model'].items()
                                if k != 'train_cfg'}, _TYPES)
        for part in (settings['backbone'], settings['neck'],
                     settings['neck'].get('norm_cfg', {})):
            if part.get('type') in ('TransferViTDet', 'SimpleFPN', 'LN2d'):
                part['type'] = f'mmpretrain.{part["type"]}'
        settings['rpn_head']['type'] = 'RPNHead'  # in float32 the same
        pipeline = check_types(
            cfg['test_dataloader']['dataset']['pipeline'], _TRANSFORMS,
            'pipeline')
        init_default_scope('mmdet')
        return cls(MODELS.build(ConfigDict(settings, train_cfg=None)),
                   pipeline)

    def __init__(self, model: nn.Module, pipeline: List[dict]) -> None:
        super().__init__()
        self.model = model
        self.classes: List[str] = []
        self.count: int = model.roi_head.bbox_head.num_classes
        init_default_scope('mmdet')
        self._transforms = [TRANSFORMS.build(t) for t in pipeline[1:]
                            if t['type'] != 'LoadAnnotations']
        init_default_scope('mmpretrain')
        self._reader = CentreCrop(32)

    def predict(self, images: Any, batch_size: int = 1) -> List[Detected]:
        """Predict images one by one, see :meth:`FinishedModel.predict`."""
        from .finished_model import name_images
        found = []
        for name, image in name_images(images):
            try:
                array = self.read(image)
            except Exception as error:  # decoders raise all sorts of errors
                reason = ' '.join(str(error).split()) or type(error).__name__
                found.append(Detected(name, [], reason))
                continue
            found.append(Detected(name, self._name_boxes(array)))
        return found

    def _name_boxes(self, array: np.ndarray) -> List[Any]:
        """Give the boxes within an image with the names of their classes."""
        height, width = array.shape[:2]
        found = []
        for label, score, box in self.find_boxes(array):
            # Images are padded to squares, which boxes may lie in.
            x1, y1, x2, y2 = np.clip(
                box, 0, (width, height, width, height)).tolist()
            if score >= _MIN_SCORE and x1 < x2 and y1 < y2:
                found.append((self.classes[label], score, x1, y1, x2, y2))
        return found

    def read(self, image: Any) -> np.ndarray:
        """Decode an image, (H, W, 3), BGR."""
        if isinstance(image, Mapping):
            return self._reader.decode(
                read_record(dict(image)), image['img_path'])
        return self._reader.read(image)

    def find_boxes(self, array: np.ndarray) -> List[Any]:
        """Give the class number, score and box of each object."""
        results: Dict[str, Any] = dict(
            img=array, img_shape=array.shape[:2], ori_shape=array.shape[:2])
        for transform in self._transforms:
            results = transform(results)
        with torch.inference_mode():
            found, = self.model.test_step(dict(
                inputs=[results['inputs']],
                data_samples=[results['data_samples']]))
        one = found.pred_instances.cpu()
        return list(zip(one.labels.tolist(), one.scores.tolist(),
                        one.bboxes.tolist()))


def report_detector(model: FinishedDetector, data: LabelledData,
                    folder: Path, facts: Mapping[str, Any]) -> Dict[str, Any]:
    """Score a detector on the validation and test images by COCO's AP.

    Args:
        model (FinishedDetector): The model.
        data (LabelledData): The images and boxes.
        folder (Path): Folder for ``metrics.json``.
        facts (Mapping[str, Any]): Further entries of ``metrics.json``.

    Returns:
        Dict[str, Any]: The content of ``metrics.json``: ``AP``, ``AP50`` and
        ``AP75`` in percent.
    """
    metrics: Dict[str, Any] = dict(
        facts, task='detect', classes=data.classes,
        train=dict(images=len(data.parts['train'].records),
                   list='train.json'))
    for name in ('val', 'test'):
        if name not in data.parts:
            continue
        coco = METRICS.build(dict(
            type='mmdet.CocoMetric', ann_file=str(folder / f'{name}.json'),
            metric='bbox'))
        coco.dataset_meta = dict(classes=data.classes)
        part = data.parts[name]
        for number, record in enumerate(part.records):
            array = model.read(record['img_path'])
            boxes = model.find_boxes(array)
            found = dict(
                labels=torch.tensor([b[0] for b in boxes], dtype=torch.long),
                scores=torch.tensor([b[1] for b in boxes]),
                bboxes=torch.tensor([b[2] for b in boxes]).reshape(-1, 4))
            coco.process({}, [dict(
                img_id=number, ori_shape=array.shape[:2],
                pred_instances=found)])
        scores = coco.evaluate(len(part.records))
        metrics[name] = dict(
            images=len(part.records), list=f'{name}.json', place=part.place,
            **{to: 100 * float(scores.get(f'coco/bbox_{key}', 0))
               for to, key in (('AP', 'mAP'), ('AP50', 'mAP_50'),
                               ('AP75', 'mAP_75'))})
        print(f'{name:<15}COCO AP {metrics[name]["AP"]:.1f} %, AP50 '
              f'{metrics[name]["AP50"]:.1f} % on {len(part.records):,} images',
              flush=True)
    write_file(folder / 'metrics.json',
               json.dumps(metrics, indent=1, default=str) + '\n')
    return metrics


def write_boxes(file: Optional[Path], model: FinishedDetector,
                images: Path, pictures: Optional[Path]) -> Dict[str, Any]:
    """Detect objects, write a table with a row for each box, and draw boxes.

    Args:
        file (Path, optional): The table, ``.csv`` or ``.parquet``. An image
            without boxes has a row without class.
        model (FinishedDetector): The model.
        images (Path): See :meth:`FinishedModel.predict`.
        pictures (Path, optional): Folder for images with boxes.

    Returns:
        Dict[str, Any]: Numbers of ``images``, ``unreadable`` ones and
        ``boxes``, and the ``predictions`` without a file.
    """
    from .finished_model import name_images
    found = model.predict(images)
    head = ('class', 'score', 'x1', 'y1', 'x2', 'y2')
    rows = [(one, box) for one in found for box in one.boxes or [(None, ) * 6]]
    if file is not None:
        columns: Dict[str, List[Any]] = dict(
            path=[encode_name(one.path) for one, _ in rows])
        columns.update((name, [box[i] for _, box in rows])
                       for i, name in enumerate(head))
        write_columns(file, dict(columns, error=[o.error for o, _ in rows]))
    if pictures is not None:
        for number, (one, (name, image)) in enumerate(zip(
                found, name_images(images))):
            if not one.error:
                stem = ''.join(c if c.isalnum() else '_'
                               for c in Path(name).stem)[:60]
                save_picture(
                    pictures / f'{number:06d}_{stem}.png',
                    _draw(model.read(image), one, model.classes))
    count = sum(len(one.boxes) for one in found)
    unreadable = sum(bool(one.error) for one in found)
    print(f'{len(found):,} images, {unreadable:,} unreadable; {count:,} boxes')
    result = dict(images=len(found), unreadable=unreadable, boxes=count)
    return result if file else dict(result, predictions=found)


def _draw(array: np.ndarray, one: Detected,
          classes: List[str]) -> Image.Image:
    """Draw boxes of a score of 0.3 or more on an image in BGR."""
    picture = Image.fromarray(np.ascontiguousarray(array[..., ::-1]))
    draw, palette = ImageDraw.Draw(picture), colours(len(classes)).tolist()
    font: Any = font_for(classes, 12)
    for name, score, *box in reversed(one.boxes):
        if score >= _MIN_DRAWN:
            colour = tuple(palette[classes.index(name)])
            draw.rectangle(box, outline=colour, width=2)
            draw.text((box[0] + 3, box[1] + 2), f'{name} {score:.2f}',
                      fill=colour, font=font)
    return picture
