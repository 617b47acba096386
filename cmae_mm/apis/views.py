"""The views of a config, as its network will get them."""
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor

from ..datasets import PixelShift
from ..visualization import fitting_scale, save_sheet, to_rgb
from ..visualization.reconstruction import grey_out
from ..visualization.sheet import draw_frames
from .checks import ArgumentError, PathLike
from .pictures import check_picture, check_shown

ONLINE, TARGET = '#ffffff', '#ff8c00'
_CANVAS = 'canvas: online window white, target window orange'


class Views(NamedTuple):
    """What was drawn.

    Args:
        out (Path): The picture.
        shifts (List[Tuple[int, int]]): Shift ``(r_y, r_x)`` of each target
            window in pixels; empty where views are no windows of a canvas.
        columns (List[str]): Titles of the picture's columns.
    """

    out: Path
    shifts: List[Tuple[int, int]]
    columns: List[str]


def show_views(cfg: Config,
               out: PathLike = 'views.png',
               count: int = 8,
               channels: Optional[Sequence[int]] = None) -> Views:
    """Draw canvas, online view, masked online view and target view.

    Images are the first ones of a training, with its seed; augmentations are
    drawn as for a batch of so many.

    Args:
        cfg (Config): A pre-training config.
        out (str | PathLike): Picture to write. Defaults to 'views.png'.
        count (int): Number of images. Defaults to 8.
        channels (Sequence[int], optional): The three channels that are shown
            as red, green and blue, or the one in grey, numbered from 0.
            Defaults to None: three as they are, the mean of others in grey.

    Returns:
        Views: The picture and the shifts.

    Raises:
        ArgumentError: If the config is none of pre-training, or its images
            have no such channels.
    """
    check_picture(out)
    if cfg.model.get('type') != 'CMAE':
        raise ArgumentError(
            'views are those of a pre-training config, with a model of type '
            f"'CMAE', but its model is of type {cfg.model.get('type')!r}")
    init_default_scope('mmpretrain')
    seed = cfg.get('randomness', {}).get('seed') or 0
    loader = Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False,
             pin_memory=False, prefetch_factor=None), seed=seed)
    seen = _watch_shift(loader.dataset)
    samples = [loader.dataset[i] for i in islice(iter(loader.sampler), count)]
    batch = loader.collate_fn(samples)
    preprocessor = MODELS.build(
        cfg.model.get('data_preprocessor') or cfg.data_preprocessor)
    raw, shifts = [s[0] for s in seen], [s[1] for s in seen]
    if not seen and hasattr(preprocessor, 'draw_params'):
        raw, shifts = _canvases_of(preprocessor, batch)
    views = preprocessor(batch, training=True)['inputs']
    views = [views] if isinstance(views, Tensor) else list(views)
    check_shown(channels, views[0].shape[1])
    canvases = [_show_canvas(canvas, preprocessor, channels) for canvas in raw]
    backbone = MODELS.build(cfg.model.backbone)
    torch.manual_seed(seed)
    mask = backbone.generate_mask(len(views[0]), 'cpu')
    columns: Dict[str, Any] = {}
    if canvases:
        side = views[0].shape[-1]
        columns[_CANVAS] = [
            draw_frames(canvas, [(0, 0, side, ONLINE), (x, y, side, TARGET)])
            for canvas, (y, x) in zip(canvases, shifts)]
    columns['online view'] = to_rgb(views[0], preprocessor, channels)
    kept = round(100 * float((~mask).float().mean()))
    columns[f'what the encoder sees: {kept} %'] = to_rgb(
        grey_out(views[0], mask, preprocessor), preprocessor, channels)
    if len(views) > 1:
        columns['target view'] = to_rgb(views[1], preprocessor, channels)
    path = Path(out).expanduser()
    save_sheet(str(path), columns, fitting_scale(views[0].shape[-1]),
               1 if count <= 4 else 2)
    return Views(path, [(int(y), int(x)) for y, x in shifts], list(columns))


def _show_canvas(canvas: np.ndarray, preprocessor: Any,
                 channels: Optional[Sequence[int]]) -> np.ndarray:
    """Make a picture of a canvas, (H, W, C), as it is loaded."""
    made = torch.from_numpy(canvas).permute(2, 0, 1).float()
    if preprocessor._channel_conversion:
        made = made.flip(0)
    made = (made - preprocessor.mean) / preprocessor.std
    return to_rgb(made[None], preprocessor, channels)[0]


def _watch_shift(dataset: Any) -> List[Tuple[np.ndarray, Tuple[int, int]]]:
    """Note the canvases and shifts of ``PixelShift``, where there is one."""
    seen: List[Tuple[np.ndarray, Tuple[int, int]]] = []
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    for shift in transforms:
        if isinstance(shift, PixelShift):
            cut = shift.transform

            def watch(results: dict, cut: Any = cut) -> dict:
                canvas = results['img'].copy()
                results = cut(results)
                seen.append((canvas, results['shift']))
                return results

            shift.__dict__['transform'] = watch
    return seen


def _canvases_of(preprocessor: Any, batch: dict) -> Any:
    """Give the canvases of a batch, and how their windows are shifted."""
    canvas = batch['inputs']
    if isinstance(canvas, (list, tuple)):
        canvas = torch.stack(list(canvas))
    pictures = list(canvas.permute(0, 2, 3, 1).contiguous().numpy())
    if not getattr(preprocessor, 'target_view', True):
        return [], []
    seeds = preprocessor._seeds(batch.get('data_samples'))
    if seeds is None:  # the global generator's next draw, and that again
        torch.manual_seed(0)
    shift = preprocessor.draw_params(len(canvas), seeds).shift
    if seeds is None:
        torch.manual_seed(0)
    return pictures, shift.tolist()
