"""Pictures of the views of a batch."""
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor

from ..datasets import PixelShift
from .image_grid import draw_frames, to_rgb
from .reconstruction import grey_out

ONLINE, TARGET = '#ffffff', '#ff8c00'
_CANVAS = 'canvas: online window white, target window orange'
# A canvas, (H, W, C), and the shift (r_y, r_x) of its target window.
_Seen = list[tuple[np.ndarray, tuple[int, int]]]


def draw_views(cfg: Config,
               count: int = 8,
               channels: Sequence[int] | None = None
               ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Draw canvas, online view, masked online view and target view.

    Uses the first images of a training, with its seed.

    Args:
        cfg (Config): A pre-training config.
        count (int): Number of images N. Defaults to 8.
        channels (Sequence[int], optional): See :func:`to_rgb`.

    Returns:
        tuple[dict[str, Any], list[tuple[int, int]]]: uint8 images
        (N, H, W, 3) by column, and the shift ``(r_y, r_x)`` of each target
        window in pixels, if there are windows of a canvas.

    Raises:
        ValueError: If the model is not a CMAE, or the images have other
            channels.
    """
    if cfg.model.get('type') != 'CMAE':
        raise ValueError("views need a pre-training config with a model of "
                         f"type 'CMAE', but got {cfg.model.get('type')!r}")
    init_default_scope('mmpretrain')
    seed = cfg.get('randomness', {}).get('seed') or 0
    loader = Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False,
             pin_memory=False, prefetch_factor=None), seed=seed)
    preprocessor = MODELS.build(
        cfg.model.get('data_preprocessor') or cfg.data_preprocessor)
    seen = _watch_pipeline(loader.dataset)
    drawn = _watch_preprocessor(preprocessor)
    samples = [loader.dataset[i] for i in islice(iter(loader.sampler), count)]
    batch = loader.collate_fn(samples)
    views = preprocessor(batch, training=True)['inputs']
    views = [views] if isinstance(views, Tensor) else list(views)
    for params in drawn:
        canvases = torch.stack(list(batch['inputs'])).permute(0, 2, 3, 1)
        seen = list(zip(canvases.numpy(), params.shift.tolist()))
    backbone = MODELS.build(cfg.model.backbone)
    torch.manual_seed(seed)
    mask = backbone.generate_mask(len(views[0]), 'cpu')
    columns: dict[str, Any] = {}
    if seen:
        size = views[0].shape[2:]
        columns[_CANVAS] = [
            draw_frames(_show_canvas(canvas, preprocessor, channels),
                        [(0, 0, size, ONLINE), (x, y, size, TARGET)])
            for canvas, (y, x) in seen]
    columns['online view'] = to_rgb(views[0], preprocessor, channels)
    visible = round(100 * float((~mask).float().mean()))
    columns[f'visible patches: {visible} %'] = to_rgb(
        grey_out(views[0], mask, preprocessor), preprocessor, channels)
    if len(views) > 1:
        columns['target view'] = to_rgb(views[1], preprocessor, channels)
    return columns, [(int(y), int(x)) for _, (y, x) in seen]


def _show_canvas(canvas: np.ndarray, preprocessor: Any,
                 channels: Sequence[int] | None) -> np.ndarray:
    """Make a picture of a canvas, (H, W, C)."""
    image = torch.from_numpy(canvas.copy()).permute(2, 0, 1).float()
    if preprocessor._channel_conversion:
        image = image.flip(0)
    image = (image - preprocessor.mean) / preprocessor.std
    return to_rgb(image[None], preprocessor, channels)[0]


def _watch_pipeline(dataset: Any) -> _Seen:
    """Record the canvases and shifts of ``PixelShift``, if there is one."""
    seen: _Seen = []
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    for place, transform in enumerate(transforms):
        if not isinstance(transform, PixelShift):
            continue

        def watch(results: dict, shift: Any = transform) -> dict:
            canvas = results['img'].copy()
            results = shift(results)
            seen.append((canvas, results['shift']))
            return results

        transforms[place] = watch
    return seen


def _watch_preprocessor(preprocessor: Any) -> list[Any]:
    """Record the random parameters of ``TwoViewDataPreprocessor``."""
    drawn: list[Any] = []
    draw: Any = getattr(preprocessor, 'draw_params', None)

    def watch(*args: Any, **kwargs: Any) -> Any:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    if draw is not None:
        preprocessor.draw_params = watch
    return drawn
