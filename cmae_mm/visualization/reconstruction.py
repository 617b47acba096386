"""Pictures of views, masks and reconstructions."""
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..datasets import PixelShift
from ..image_size import patch_grid
from .image_grid import draw_frames, to_rgb

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


# If the loss normalises patches, the decoder predicts only the contrast within
# each patch.
PREDICTED = 'predicted (patches normalised)'
RESTORED = "with each patch's own mean and deviation"


@torch.no_grad()
def reconstruct(model: nn.Module,
                images: torch.Tensor,
                mask: torch.Tensor | None = None
                ) -> dict[str, torch.Tensor]:
    """Reconstruct masked patches.

    Args:
        model (CMAE): The model.
        images (torch.Tensor): Normalised images, (N, C, H, W).
        mask (torch.Tensor, optional): Bool, (N, L), True = masked. Defaults
            to None, a random one.

    Returns:
        dict[str, torch.Tensor]: ``mask`` (N, L), and images (N, C, H, W) in
        the input's normalisation: ``masked``, with zeros for masked patches;
        ``prediction``, the decoder's output for all patches; and
        ``reconstruction``, the input with predictions for masked patches. If
        the loss normalises patches, the mean and variance of each true patch
        are restored in ``reconstruction``.
    """
    if mask is None:
        mask = model.backbone.generate_mask(len(images), images.device)
    tokens, ids_restore = model.backbone(images, mask)
    pred = model.neck.pixel_decoder(tokens, ids_restore).float()
    head = model.head.reconstruction
    patches = head.patchify(images)
    grid = model.backbone.patch_resolution
    # Heads of other projects support squares only.
    unpatchify = partial(
        head.unpatchify, **({} if grid[0] == grid[1] else dict(grid=grid)))
    prediction = unpatchify(pred)
    if head.norm_pix:
        mean = patches.mean(dim=-1, keepdim=True)
        var = patches.var(dim=-1, keepdim=True)
        pred = pred * (var + 1e-6)**.5 + mean
    removed = mask.unsqueeze(-1)
    return dict(
        mask=mask,
        masked=unpatchify(patches.masked_fill(removed, 0)),
        prediction=prediction,
        reconstruction=unpatchify(torch.where(removed, pred, patches)))


def grey_out(images: torch.Tensor, mask: torch.Tensor,
             preprocessor: nn.Module) -> torch.Tensor:
    """Replace masked patches by mid grey.

    Args:
        images (torch.Tensor): Normalised images, (N, 3, H, W).
        mask (torch.Tensor): Bool, (N, L), True = masked.
        preprocessor (nn.Module): With ``mean`` and ``std``.

    Returns:
        torch.Tensor: Images, (N, 3, H, W).
    """
    grid = patch_grid(images.shape[2:], mask.shape[1])
    side = images.shape[-1] // grid[1]
    removed = mask.view(-1, 1, *grid).repeat_interleave(
        side, 2).repeat_interleave(side, 3)
    grey = (_middle(preprocessor) - preprocessor.mean) / preprocessor.std
    return torch.where(removed, grey.expand_as(images), images)


def _middle(preprocessor: nn.Module) -> Any:
    """Return the value of mid grey, in the images' units."""
    if getattr(preprocessor, 'is_byte_range', True):
        return 127.5
    return preprocessor.low + preprocessor.width / 2


def prediction_columns(model: nn.Module,
                       images: torch.Tensor,
                       mask: torch.Tensor | None = None,
                       channels: Sequence[int] | None = None
                       ) -> dict[str, np.ndarray]:
    """Draw the prediction of the pixel decoder, raw and restored.

    Args:
        model (CMAE): The model.
        images (torch.Tensor): Normalised images, (N, 3, H, W).
        mask (torch.Tensor, optional): Bool, (N, L), True = masked. Defaults
            to None, a random one.
        channels (Sequence[int], optional): See :func:`to_rgb`. Defaults to
            None.

    Returns:
        dict[str, np.ndarray]: uint8 images (N, H, W, 3) by column: the input,
        its visible patches, the prediction, and the prediction with the mean
        and standard deviation of each true patch. If the loss does not
        normalise patches, the last two are one, the reconstruction.
    """
    training = model.training
    model.eval()
    made = reconstruct(model, images, mask)
    model.train(training)
    preprocessor = model.data_preprocessor
    columns = {
        'input': images,
        'masked': grey_out(images, made['mask'], preprocessor)
    }
    if model.head.reconstruction.norm_pix:
        columns[PREDICTED] = made['prediction']
        columns[RESTORED] = made['reconstruction']
    else:
        columns['reconstruction'] = made['reconstruction']
    return {name: to_rgb(pictures, preprocessor, channels)
            for name, pictures in columns.items()}
