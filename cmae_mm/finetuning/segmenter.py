"""Segmenters: config, predictions and metrics."""
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from ..config import ArgumentError, load_config
from ..datasets.decode import make_settings
from ..dependencies import cpu_count
from .data import LabelledData
from .masks import IGNORED, read_mask
from .model import FinetunedModel, Found, place_windows
from .pictures import draw_masks, draw_overlay, to_picture
from .recipe import Run, apply_recipe

_BASE = 'segmentation/upernet-mini_coco'
_MOST_SHOWN = 8


def make_config(encoder: Mapping[str, Any], data: LabelledData,
                run: Run) -> Config:
    """Build the config of a segmenter: two layers, or UPerNet.

    Args:
        encoder (Mapping[str, Any]): See :func:`~cmae_mm.finetune`.
        data (LabelledData): See :func:`~cmae_mm.finetuning.masks.read_masks`.
        run (Run): The settings.

    Returns:
        Config: For mmengine's runner.

    Raises:
        ArgumentError: If the encoder has too few layers.
    """
    width, depth = encoder['width'], encoder['depth']
    is_large = run.decoder == 'large'
    if is_large and depth < 4:
        raise ArgumentError('the decoder large, UPerNet, needs an encoder of '
                            f'4 layers or more, but this one has {depth}')
    cfg = load_config(_BASE)
    size, classes = encoder['backbone']['img_size'], len(data.classes)
    images, model = encoder['images'] or {}, cfg.model
    model.data_preprocessor.update(
        mean=encoder['mean'], std=encoder['std'], size=(size, size),
        bgr_to_rgb=make_settings(**images).is_bgr)
    model.backbone = dict(
        encoder['backbone'], out_type='featmap',
        out_indices=[depth * (i + 1) // 4 - 1 for i in range(4)] if is_large
        else [depth - 1],
        type=f'mmpretrain.{encoder["backbone"]["type"]}')
    if run.frozen:
        model.backbone.frozen_stages = depth
    if is_large:
        model.neck.update(embed_dim=width)
        model.decode_head.update(
            in_channels=[width] * 4, channels=max(width // 2, 64),
            num_classes=classes)
    else:
        model.neck = None
        model.decode_head = dict(
            type='FCNHead', in_channels=width, in_index=0, channels=width,
            num_convs=1, concat_input=False, dropout_ratio=0.1,
            num_classes=classes, norm_cfg=dict(type='BN'), align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False,
                             avg_non_ignore=True))
    model.test_cfg.update(crop_size=(size, size), stride=(size * 2 // 3, ) * 2)
    scale = (4 * size, size)
    load = dict(type='mmpretrain.LoadImage', **images)
    masks = dict(type='LoadAnnotations', imdecode_backend='pillow')
    test = [load, dict(type='Resize', scale=scale, keep_ratio=True), masks,
            dict(type='PackSegInputs')]
    train = [dict(type='mmpretrain.SeedDraws'), load, masks,
             dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.5),
                  keep_ratio=True),
             dict(type='RandomCrop', crop_size=(size, size),
                  cat_max_ratio=0.9),
             dict(type='RandomFlip', prob=0.5),
             dict(type='PackSegInputs')]
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset = dict(
            type='ListedSegDataset', test_mode=name != 'train',
            pipeline=train if name == 'train' else test)
    cfg.default_hooks.visualization.update(draw=False)
    apply_recipe(cfg, run, data, 'mIoU')
    return cfg


class Segmented(NamedTuple):
    """Prediction for one image.

    Args:
        path (str): Path of the image, or 'image N'.
        mask (np.ndarray | None): Number of the class of each pixel, uint8,
            (H, W); None for an unreadable image.
        shares (dict[str, float]): Share of the pixels of each class.
        error (str): Reason why the image is unreadable, '' otherwise.
    """

    path: str
    mask: np.ndarray | None
    shares: dict[str, float]
    error: str = ''


class FinetunedSegmenter(FinetunedModel):
    """A segmenter, see :class:`FinetunedModel`."""

    task, scope = 'segment', 'mmseg'
    types = frozenset({
        'EncoderDecoder', 'TransferViT', 'TransferConvViT', 'FCNHead',
        'UPerHead', 'Feature2Pyramid', 'CrossEntropyLoss',
        'SegDataPreProcessor'})
    transforms = ('LoadAnnotations', 'Resize', 'PackSegInputs')
    read_at_once = cpu_count()

    def __init__(self, model: nn.Module, pipeline: Sequence[dict]) -> None:
        super().__init__(model, pipeline)
        self.count = model.decode_head.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores of each pixel.

        Args:
            images (Tensor): (N, C, S, S), colours as RGB in 0 to 255.

        Returns:
            Tensor: Probabilities, (N, K, S, S).
        """
        return self._logits(images).softmax(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        logits = self.model(self.normalise(images), mode='tensor')
        return F.interpolate(logits, images.shape[2:], mode='bilinear')

    def infer(self, images: Sequence[np.ndarray], batch_size: int,
              window: int | None) -> Iterator[np.ndarray]:
        """Yield the class numbers of images, uint8, (H, W).

        Logits of windows are averaged. Each window is resized to the encoder's
        image size. The default windows are squares of the shorter side.
        """
        for array in images:
            if window is not None:
                yield self._segment_windows(array, batch_size, window)
                continue
            mask: Tensor = self.test_step(array).pred_sem_seg.data[0]
            yield mask.cpu().numpy().astype(np.uint8)

    def _segment_windows(self, array: np.ndarray, batch_size: int,
                         window: int) -> np.ndarray:
        """Segment an image in overlapping windows, row by row."""
        height, width = array.shape[:2]
        side, tops, lefts = place_windows(array.shape, window)
        mask = np.empty((height, width), np.uint8)
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
        """Compute the logits of square crops, (K, S, S) each."""
        size, side = (self.img_size, self.img_size), crops[0].shape[0]
        for start in range(0, len(crops), batch_size):
            images = np.stack([mmcv.imresize(crop, size) for crop in
                               crops[start:start + batch_size]])
            batch = torch.from_numpy(images.reshape(
                len(images), *size, -1).astype(np.float32))
            if self.reader.settings.is_bgr:
                batch = batch.flip(-1)
            with torch.inference_mode():
                logits = self._logits(
                    batch.permute(0, 3, 1, 2).to(self.device))
                for one in logits.split(1):
                    yield F.interpolate(one, (side, side), mode='bilinear'
                                        )[0].cpu()

    def name_result(self, found: Found) -> Segmented:
        """Compute the share of each class."""
        if found.error:
            return Segmented(found.name, None, {}, found.error)
        return Segmented(found.name, found.result, self._shares(found.result))

    def _shares(self, mask: np.ndarray) -> dict[str, float]:
        counts = np.bincount(mask.ravel(), minlength=self.count)
        return {c: float(n / mask.size) for c, n in zip(self.classes, counts)}

    def draw(self, found: Found) -> Any:
        """Draw a mask over its image."""
        return draw_overlay(to_picture(found.image), found.result,
                            self._shares(found.result))

    def measure(self, data: LabelledData, name: str, folder: Path
                ) -> tuple[dict[str, Any], str]:
        """Measure the IoU of each class and the pixel accuracy."""
        part, count = data.parts[name], self.count
        shown: list[Any] = []
        numbers = np.full(256, IGNORED, np.uint8)
        numbers[[*data.label_map]] = [*data.label_map.values()]
        confusion = np.zeros((count, count), np.int64)
        done = []
        for number, found in self.run_part(part):
            done.append(number)
            true = numbers[read_mask(part.records[number]['seg_map_path'])]
            valid = true != IGNORED
            confusion += np.bincount(
                true[valid].astype(int) * count + found.result[valid],
                minlength=count**2).reshape(count, count)
            if len(shown) < _MOST_SHOWN:
                image = to_picture(found.image)
                shown.append([image, *(
                    draw_overlay(image, mask, self._shares(mask))
                    for mask in (true, found.result))])
        draw_masks(folder / f'{name}_masks.png', shown)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = confusion.diagonal() / np.maximum(union, 1)
        used = union > 0
        mean = 100 * float(iou[used].mean())
        accuracy = 100 * float(confusion.trace() / confusion.sum())
        return dict(
            images=len(done), mIoU=mean, accuracy=accuracy,
            per_class={c: 100 * float(v) for c, v, u in zip(
                self.classes, iou, used) if u}), (
            f'mIoU {mean:.1f} %, pixel accuracy {accuracy:.1f} %')
