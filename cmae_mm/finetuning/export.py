"""Export of fine-tuned models to ONNX, timm and transformers."""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from ..checkpoints import CheckpointError, export_classifier
from ..checkpoints.onnx_export import random_images, write_onnx
from ..files import PathLike
from ..image_size import to_pair
from .model import FinetunedModel, load_model


class DeployedDetector(nn.Module):
    """A Faster R-CNN for one image: the steps of mmdet's ``predict``.

    Tensors keep their size up to the last steps: suppressed boxes get the
    score -1. The image is padded inside, so boxes are clipped to its own size.

    Args:
        model (FinetunedModel): A detector.
    """

    names = ('boxes', 'scores', 'labels')

    def __init__(self, model: FinetunedModel) -> None:
        super().__init__()
        self.model: Any = model.model
        self.normalise, self.size = model.normalise, model.img_size
        self.dynamic_shapes = {i + 2: torch.export.Dim(
            name, min=2, max=self.size) for i, name in enumerate(
                ('height', 'width'))}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in one image.

        Args:
            images (Tensor): (1, 3, H, W), RGB in 0 to 255; the longer of H
                and W is the detector's image size.

        Returns:
            tuple: Boxes (M, 4) as x1, y1, x2, y2 in pixels of the input,
            scores (M, ) in descending order, and class numbers (M, ).
        """
        shape = images.shape[2:]
        levels = self.model.extract_feat(F.pad(
            self.normalise(images),
            (0, self.size - shape[1], 0, self.size - shape[0])))
        boxes, is_kept = self._propose(levels, shape)
        head: Any = self.model.roi_head
        cfg = head.test_cfg
        classes, offsets = head.bbox_head(self._crop(levels, boxes))
        scores = classes.softmax(1)[:, :-1] * is_kept[:, None]
        boxes = _decode(head.bbox_head.bbox_coder, boxes, offsets, shape)
        labels = torch.arange(scores.shape[1]).expand_as(scores).flatten()
        scores = scores.flatten()
        used = (scores > cfg.score_thr).nonzero()[:, 0]
        best, order = self._suppress(
            boxes, scores, labels, used, cfg.nms.iou_threshold,
            cfg.max_per_img)
        found = (best > 0).nonzero()[:, 0]
        order = order[found]
        return boxes[order], best[found], labels[order]

    @staticmethod
    def match(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]
              ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pair boxes, a tenth of which may be at a threshold of NMS.

        Raises:
            CheckpointError: If other boxes were found.
        """
        if not len(found[0]) and not len(wanted[0]):
            return [*found], [*wanted]
        apart = np.abs(found[0][:, None] - wanted[0]).max(2) + (
            1e3 * (found[2][:, None] != wanted[2]))
        same = apart.min(1, initial=1e3) < 1
        if same.sum() < 0.9 * max(len(found[0]), len(wanted[0])):
            raise CheckpointError(
                'boxes of the ONNX file differ from those of torch, so the '
                'file was removed')
        order = apart.argmin(1)[same]
        return [x[same] for x in found], [x[order] for x in wanted]

    def _propose(self, levels: Sequence[Tensor], shape: Sequence[Any]
                 ) -> tuple[Tensor, Tensor]:
        """Return the boxes of the RPN, (P, 4), and which of them count."""
        head: Any = self.model.rpn_head
        cfg = head.test_cfg
        priors = head.prior_generator.grid_priors(
            [level.shape[2:] for level in levels], device='cpu')
        boxes, scores, numbers = [], [], []
        for number, (prior, score, offset) in enumerate(
                zip(priors, *head(levels))):
            score = score.permute(0, 2, 3, 1).flatten().sigmoid()
            score, index = score.topk(min(cfg.nms_pre, len(score)))
            offset = offset.permute(0, 2, 3, 1).reshape(-1, 4)[index]
            box = _decode(head.bbox_coder, prior[index], offset, shape)
            sides = box[:, 2:] - box[:, :2]
            valid = (sides > cfg.min_bbox_size).all(1)
            boxes.append(box)
            scores.append(torch.where(valid, score, -1.))
            numbers.append(torch.full_like(index, number))
        box, score = torch.cat(boxes), torch.cat(scores)
        best, order = self._suppress(
            box, score, torch.cat(numbers), torch.arange(len(score)),
            cfg.nms.iou_threshold, cfg.max_per_img)
        return box[order], best >= 0

    def _suppress(self, boxes: Tensor, scores: Tensor, groups: Tensor,
                  used: Tensor, limit: float, count: int
                  ) -> tuple[Tensor, Tensor]:
        """Return the highest scores after NMS in each group, and indices."""
        # Boxes of other groups do not overlap.
        shifted = boxes + groups[:, None] * (self.size + 1.)
        kept = used[nms(shifted[used], scores[used], limit)]
        rest = torch.full_like(scores, -1.).index_put((kept, ), scores[kept])
        return rest.topk(min(count, len(scores)))

    def _crop(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return the features of boxes, (P, D, R, R)."""
        extractor: Any = self.model.roi_head.bbox_roi_extractor
        boxes = F.pad(boxes, (1, 0))  # number of the image
        layers = extractor.roi_layers
        numbers = extractor.map_roi_levels(boxes, len(layers))
        total: Any = 0
        for number, layer in enumerate(layers):
            # Boxes of other levels are cropped from the corner, cheaply.
            own = (numbers == number)[:, None]
            total = total + roi_align(
                levels[number], boxes * own, layer.output_size,
                layer.spatial_scale, layer.sampling_ratio,
                layer.aligned) * own[..., None, None]
        return total


def _decode(coder: Any, boxes: Tensor, offsets: Tensor,
            shape: Sequence[Any]) -> Tensor:
    """Apply offsets, (P, 4K), to boxes, and clip them, (PK, 4).

    mmdet's coders have another, broken, path during an export.
    """
    offsets = offsets.reshape(len(boxes), -1, 4)
    offsets = offsets * offsets.new_tensor(coder.stds) + (
        offsets.new_tensor(coder.means))
    low, high = boxes[:, None].split(2, dim=2)
    centre = (low + high) / 2 + (high - low) * offsets[..., :2]
    most = -math.log(16 / 1000)
    half = (high - low) / 2 * offsets[..., 2:].clamp(-most, most).exp()
    corners = torch.cat([centre - half, centre + half], 2).reshape(-1, 4)
    return torch.stack([side.clamp(0, shape[1 - i % 2])
                        for i, side in enumerate(corners.unbind(1))], 1)


_OUTPUTS = dict(classify=['softmax'], multilabel=['sigmoid of each class'],
                segment=['softmax of each pixel'],
                detect=['x1, y1, x2, y2 in pixels of the input',
                        'descending', 'numbers of the classes'])


def export_model(folder: PathLike, out: PathLike,
                 dtype: str = 'float32') -> float:
    """Export a fine-tuned model to ONNX, see ``cmae_mm.export_model``."""
    model = load_model(folder).cpu()
    deployed: Any = model
    model.names = ('scores', )
    if model.task == 'detect':
        if dtype != 'float32':
            raise CheckpointError(
                f'{folder} is a detector, whose boxes need float32, not '
                f'{dtype}')
        deployed = DeployedDetector(model).eval()

    def images(count: int) -> Tensor:
        shape = (count, model.in_channels, *to_pair(model.img_size))
        if model.task == 'detect':  # one image; another shape each time
            shape = (1, 3, model.img_size, model.img_size // count)
        return random_images(shape, model.model.data_preprocessor)

    return write_onnx(deployed, images, out, dict(
        classes=model.classes,
        task=model.task,
        img_size=model.img_size,
        channels=model.in_channels,
        short_side=_short_side(model),
        preprocessing=model.pipeline,
        images=model.images or 'RGB, 0 to 255',
        outputs=dict(zip(deployed.names, _OUTPUTS[model.task]))), dtype)


def export_folder(folder: PathLike, out: PathLike, to: str) -> None:
    """Export a fine-tuned classifier to timm or transformers.

    Args:
        folder (str | PathLike): Folder of ``cmae finetune``.
        out (str | PathLike): A folder, or for timm also a file.
        to (str): 'timm' or 'hf'.

    Raises:
        CheckpointError: If the model cannot be loaded or written.
    """
    model = load_model(folder).cpu()
    if model.task in ('segment', 'detect'):
        raise CheckpointError(
            f'{folder} is for the task {model.task}, but only classifiers can '
            f'be exported to {to}')
    export_classifier(model.model, str(out), to, model.classes, model.images,
                      _short_side(model), recipe=str(folder))


def _short_side(model: FinetunedModel) -> Any:
    """Return the short side of the size that images are resized to cover."""
    return next((min(to_pair(t['scale'])) for t in model.pipeline
                 if t['type'] == 'ResizeImage'), None)
