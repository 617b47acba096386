"""Detectors: config, predictions and metrics."""
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import METRICS
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ..config import ArgumentError, load_config
from ..dependencies import cpu_count, require_dense
from ..models import TransferViT
from .data import LabelledData
from .model import FinetunedModel, Found, place_windows
from .pictures import draw_boxes, to_picture
from .recipe import Run, apply_recipe

_BASE = 'detection/vitdet-mini_mask-rcnn_coco'
_LARGE = 'detection/vitdet-b_mask-rcnn_100e_coco'
# Smallest score of written boxes.
_MIN_SCORE = 0.05


def make_config(encoder: Mapping[str, Any], data: LabelledData, run: Run,
                img_size: int) -> Config:
    """Build the config of a detector: ViTDet with Faster R-CNN.

    The large decoder has the pyramid and the heads of the paper's Mask R-CNN,
    without its mask head.

    Args:
        encoder (Mapping[str, Any]): See :func:`~cmae_mm.finetune`.
        data (LabelledData): See :func:`~cmae_mm.finetuning.boxes.read_boxes`.
        run (Run): The settings.
        img_size (int): Side of the images, which is rounded up to a multiple
            of four patches.

    Returns:
        Config: For mmengine's runner.

    Raises:
        ArgumentError: If the encoder is not a ViT for 8-bit colours.
    """
    backbone, depth = encoder['backbone'], encoder['depth']
    if encoder['images'] is not None or backbone['type'] != 'TransferViT':
        raise ArgumentError('detection needs a ViT encoder of 8-bit colours')
    cfg = load_config(_BASE)
    if run.decoder == 'large':
        cfg.model = load_config(_LARGE).model
    arch, patch = backbone['arch'], backbone.get('patch_size', 16)
    if not isinstance(arch, Mapping):
        arch = TransferViT.arch_zoo[arch]
    step = 4 * patch
    size = -(-img_size // step) * step
    model, classes = cfg.model, len(data.classes)
    model.type = 'FasterRCNN'
    model.pop('_scope_', None)
    model.data_preprocessor.update(
        mean=encoder['mean'], std=encoder['std'], pad_mask=False,
        pad_size_divisor=size)
    model.backbone.update(
        img_size=size, patch_size=patch, init_cfg=backbone['init_cfg'],
        drop_path_rate=run.recipe.drop_path,
        frozen_stages=depth if run.frozen else -1, arch=dict(
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
        loader = cfg[f'{name}_dataloader']
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
            data_root='', data_prefix=dict(img=''),
            metainfo=dict(classes=data.classes))
    apply_recipe(cfg, run, data, 'coco/bbox_mAP')
    for name in ('val', 'test'):
        cfg[f'{name}_evaluator'].update(
            ann_file=cfg[f'{name}_dataloader'].dataset.ann_file, metric='bbox')
    cfg.default_hooks.visualization.update(draw=False)
    return cfg


class Detected(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N'.
        boxes (list[tuple]): Class, score, and x1, y1, x2, y2 in pixels, the
            highest score first.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    boxes: list[Any]
    error: str = ''


class FinetunedDetector(FinetunedModel):
    """A detector, see :class:`FinetunedModel`."""

    task, scope = 'detect', 'mmdet'
    types = frozenset({
        'FasterRCNN', 'TransferViTDet', 'SimpleFPN', 'RPNHead',
        'StandardRoIHead', 'SingleRoIExtractor', 'RoIAlign',
        'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead', 'DetDataPreprocessor',
        'AnchorGenerator', 'DeltaXYWHBBoxCoder', 'CrossEntropyLoss', 'L1Loss',
        'nms'})
    transforms = ('LoadAnnotations', 'Resize', 'Pad', 'PackDetInputs')
    read_at_once = cpu_count()

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FinetunedModel':
        """Build a detector from its config, parsed as plain data."""
        require_dense('mmdet', extra='det')
        # Equivalent in float32.
        head = dict(cfg['model']['rpn_head'], type='RPNHead')
        return super().from_config(
            dict(cfg, model=dict(cfg['model'], rpn_head=head)))

    def __init__(self, model: nn.Module, pipeline: Sequence[dict]) -> None:
        super().__init__(model, pipeline)
        self.count = model.roi_head.bbox_head.num_classes

    def infer(self, images: Sequence[np.ndarray], batch_size: int,
              window: int | None) -> Iterator[list[Any]]:
        """Yield the class number, score and box of each object.

        Boxes of windows are merged by non-maximum suppression.
        """
        for array in images:
            if window is None:
                labels, scores, boxes = self._detect(array)
            else:
                side, tops, lefts = place_windows(array.shape, window)
                labels, scores, boxes = map(torch.cat, zip(*(
                    self._detect(array[y:y + side, x:x + side], x, y)
                    for y in tops for x in lefts)))
                kept = batched_nms(
                    boxes, scores, labels,
                    self.model.roi_head.test_cfg.nms.iou_threshold)
                labels, scores, boxes = labels[kept], scores[kept], boxes[kept]
            yield list(zip(labels.tolist(), scores.tolist(), boxes.tolist()))

    def _detect(self, array: np.ndarray, left: int = 0,
                top: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return class numbers, scores and boxes of an image or window."""
        found = self.test_step(array).pred_instances.cpu()
        shift = torch.tensor([left, top, left, top])
        return found.labels, found.scores, found.bboxes + shift

    def name_result(self, found: Found) -> Detected:
        """Convert class numbers of boxes to names; clip boxes to the image."""
        if found.error:
            return Detected(found.name, [], found.error)
        height, width = found.image.shape[:2]
        boxes = []
        for label, score, box in found.result:
            # Images are padded to squares; boxes may extend into the padding.
            x1, y1, x2, y2 = np.clip(
                box, 0, (width, height, width, height)).tolist()
            if score >= _MIN_SCORE and x1 < x2 and y1 < y2:
                boxes.append((self.classes[label], score, x1, y1, x2, y2))
        return Detected(found.name, boxes)

    def draw(self, found: Found) -> Any:
        """Draw boxes on their image."""
        return draw_boxes(to_picture(found.image),
                          self.name_result(found).boxes, self.classes)

    def measure(self, data: LabelledData, name: str, folder: Path
                ) -> tuple[dict[str, Any], str]:
        """Measure COCO's AP, in percent."""
        part = data.parts[name]
        coco = METRICS.build(dict(
            type='mmdet.CocoMetric', ann_file=str(folder / f'{name}.json'),
            metric='bbox', classwise=True))
        coco.dataset_meta = dict(classes=data.classes)
        done = []
        for number, found in self.run_part(part):
            done.append(number)
            labels, scores, boxes = zip(*found.result) if found.result else (
                (), (), ())
            coco.process({}, [dict(
                img_id=number, ori_shape=found.image.shape[:2],
                pred_instances=dict(
                    labels=torch.tensor(labels, dtype=torch.long),
                    scores=torch.tensor(scores),
                    bboxes=torch.tensor(boxes).reshape(-1, 4)))])
        scores = coco.evaluate(len(done))
        metrics: dict[str, Any] = {'images': len(done)} | {
            to: 100 * float(scores.get(f'coco/bbox_{key}', 0))
            for to, key in (('AP', 'mAP'), ('AP50', 'mAP_50'),
                            ('AP75', 'mAP_75'))}
        # Classes without boxes in this part have NaN.
        metrics['per_class'] = {
            name: 100 * float(value) for name in data.classes
            for value in [scores.get(f'coco/{name}_precision', math.nan)]
            if not math.isnan(value)}
        return metrics, (f'COCO AP {metrics["AP"]:.1f} %, AP50 '
                         f'{metrics["AP50"]:.1f} %')
