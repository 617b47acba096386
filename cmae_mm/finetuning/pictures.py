"""Pictures of predictions and metrics."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..datasets.names import encode_name
from ..visualization import fitting_scale, save_grid
from ..visualization.image_grid import font_for, save_picture

# Longest side of an overlay in pixels.
_OVERLAY_SIDE = 1024
# Width and height of the pictures of a sheet of masks.
_THUMBNAIL = (300, 200)
# Smallest score of drawn boxes.
_MIN_DRAWN = 0.3
# Largest number of classes with numbers in the confusion matrix.
_MOST_NUMBERED = 25


def to_picture(image: Tensor | np.ndarray) -> np.ndarray:
    """Convert an image to a picture.

    Args:
        image (Tensor | np.ndarray): (C, H, W), colours as RGB, or an array
            (H, W, C), three channels of uint8 as BGR.

    Returns:
        np.ndarray: RGB, uint8, (H, W, 3). Other channels than three are
        averaged; other types than uint8 are scaled to the image's range.
    """
    if isinstance(image, Tensor):
        array = image.permute(1, 2, 0).numpy()
    else:
        array = image[:, :].reshape(*image.shape[:2], -1)
        if array.dtype == np.uint8 and array.shape[2] == 3:
            array = array[..., ::-1]
    is_byte = array.dtype == np.uint8
    array = array.astype(np.float32)
    if array.shape[2] != 3:
        array = array.mean(axis=2, keepdims=True).repeat(3, axis=2)
    if not is_byte:
        low, high = array.min(), array.max()
        array = (array - low) / max(high - low, 1e-12) * 255
    return array.round().clip(0, 255).astype(np.uint8)


def draw_sheet(file: Path, title: str,
               pictures: Sequence[tuple[np.ndarray, str]]) -> None:
    """Draw pictures of one size, with a line of text below each.

    Args:
        file (Path): PNG file; removed if there are no pictures.
        title (str): Title of the sheet.
        pictures (Sequence[tuple]): Pictures, (S, S, 3), and their texts.
    """
    if not pictures:
        file.unlink(missing_ok=True)
        return
    save_grid(file, {title: [picture for picture, _ in pictures]},
              scale=fitting_scale(pictures[0][0].shape[0], 200), per_row=5,
              labels=[encode_name(text) for _, text in pictures])


def draw_masks(file: Path, shown: Sequence[Sequence[Any]]) -> None:
    """Draw images next to overlays of true and predicted masks.

    Args:
        file (Path): PNG file.
        shown (Sequence[Sequence]): An image and two overlays in each row.
    """
    save_grid(file, {
        title: [np.asarray(ImageOps.pad(
            Image.fromarray(np.asarray(picture)), _THUMBNAIL, color='white'))
            for picture in pictures]
        for title, pictures in zip(('image', 'true', 'predicted'),
                                   zip(*shown))})


def draw_boxes(image: np.ndarray, boxes: Sequence[Any],
               classes: Sequence[str]) -> Image.Image:
    """Draw boxes of a score of 0.3 or more.

    Args:
        image (np.ndarray): RGB, uint8, (H, W, 3), see :func:`to_picture`.
        boxes (Sequence[tuple]): Class, score, x1, y1, x2, y2, the highest
            score first.
        classes (Sequence[str]): Names of all classes.

    Returns:
        Image.Image: The picture.
    """
    picture = Image.fromarray(image)
    draw, palette = ImageDraw.Draw(picture), colours(len(classes)).tolist()
    font: Any = font_for(classes, 12)
    for name, score, *box in reversed(boxes):
        if score >= _MIN_DRAWN:
            colour = tuple(palette[classes.index(name)])
            draw.rectangle(box, outline=colour, width=2)
            draw.text((box[0] + 3, box[1] + 2), f'{name} {score:.2f}',
                      fill=colour, font=font)
    return picture


def draw_confusion(file: Path, matrix: np.ndarray,
                   classes: Sequence[str]) -> None:
    """Draw a confusion matrix, a row for each true class.

    Args:
        file (Path): PNG file.
        matrix (np.ndarray): Numbers of images, (K, K).
        classes (Sequence[str]): Names of the K classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay
    count = len(classes)
    numbered = count <= _MOST_NUMBERED
    side = min(max(4., 2 + 0.45 * count), 20.)
    figure = Figure(figsize=(side, side), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    # Escape $, so names are not parsed as formulas.
    names = [encode_name(c).replace('$', r'\$') for c in classes]
    shown = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shown, display_labels=names)
    display.plot(ax=figure.add_subplot(), cmap='Blues', colorbar=not numbered,
                 include_values=numbered, xticks_rotation='vertical',
                 im_kw=dict(vmin=0, vmax=1))
    display.ax_.set(xlabel='predicted', ylabel='true')
    if numbered:
        for text, number in zip(display.text_.flat, matrix.flat):
            text.set_text(number or '')
    canvas.draw()
    save_picture(file, Image.fromarray(
        np.asarray(canvas.buffer_rgba())[..., :3].copy()))


def draw_overlay(image: np.ndarray, mask: np.ndarray,
                 shares: Mapping[str, float]) -> Image.Image:
    """Draw a mask over an image, with a legend of its classes.

    Args:
        image (np.ndarray): RGB, uint8, (H, W, 3), see :func:`to_picture`.
        mask (np.ndarray): Class numbers, (H, W).
        shares (Mapping[str, float]): Share of each class, in their order.

    Returns:
        Image.Image: At most 1024 pixels, plus the legend.
    """
    palette = colours(len(shares))
    picture = Image.blend(
        Image.fromarray(image), Image.fromarray(palette[mask]), 0.5)
    picture.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    lines = [(tuple(palette[number].tolist()),
              encode_name(f'{name} {100 * share:.0f} %'))
             for number, (name, share) in enumerate(shares.items()) if share]
    font: Any = font_for([text for _, text in lines], 12)
    width = max([int(font.getlength(text)) for _, text in lines],
                default=0) + 30
    sheet = Image.new('RGB', (picture.width + width, max(
        picture.height, 18 * len(lines))), 'white')
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, (colour, text) in enumerate(lines):
        x, y = picture.width + 6, 18 * row + 2
        draw.rectangle((x, y, x + 12, y + 12), fill=colour)
        draw.text((x + 18, y), text, fill='black', font=font)
    return sheet


def colours(count: int) -> np.ndarray:
    """Return a colour for each class, and black for ignored pixels."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:count] = np.random.default_rng(1).integers(40, 256, (count, 3))
    return palette
