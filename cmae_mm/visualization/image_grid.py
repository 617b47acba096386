"""Grids of pictures in titled columns."""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from PIL import Image, ImageDraw, ImageFont

from ..files import PathLike, atomic_path

_GAP, _MARGIN = 4, 6


def to_rgb(images: torch.Tensor,
           preprocessor: BaseDataPreprocessor,
           channels: Sequence[int] | None = None) -> np.ndarray:
    """Convert normalised images to pictures.

    Args:
        images (torch.Tensor): Normalised images, (N, C, H, W), colours as RGB.
        preprocessor (BaseDataPreprocessor): The model's, with ``mean`` and
            ``std``, and, for values outside 0 to 255, ``low``, shown as black,
            and ``width``, the range up to white.
        channels (Sequence[int], optional): Three channels to show as red,
            green and blue, or one to show in grey, numbered from 0. Defaults
            to None: three channels as RGB, the mean of any other number in
            grey.

    Returns:
        np.ndarray: uint8 images, (N, H, W, 3).

    Raises:
        ValueError: If the images do not have these channels, or their number
            is not one or three.
    """
    count = images.shape[1]
    if channels is not None and (len(channels) not in (1, 3) or not all(
            0 <= c < count for c in channels)):
        raise ValueError(
            f'a picture shows one channel or three, each from 0 to {count - 1}'
            f', but got {tuple(channels)}')
    images = images * preprocessor.std + preprocessor.mean
    if not getattr(preprocessor, 'is_byte_range', True):
        images = (images - preprocessor.low) / preprocessor.width * 255
    if channels is not None:
        images = images[:, list(channels)]
    elif count != 3:
        images = images.mean(dim=1, keepdim=True)
    images = images.round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def font_for(texts: Iterable[str], size: int) -> Any:
    """Choose a font that contains all letters of some texts.

    Args:
        texts (Iterable[str]): The texts.
        size (int): Size of the font in pixels.

    Returns:
        ImageFont.FreeTypeFont: Pillow's own for ASCII, otherwise matplotlib's
        DejaVu Sans: Latin, Greek, Cyrillic and Arabic, without Chinese,
        Japanese and Korean.
    """
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    import matplotlib
    file = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(file), size)


def label_files(files: Sequence[Path]) -> list[str]:
    """Return the shortest unique suffixes of paths.

    Args:
        files (Sequence[Path]): The files.

    Returns:
        list[str]: The names, each with the same number of parent folders.
    """
    different = len(set(files))
    for count in range(1, max(len(file.parts) for file in files) + 1):
        names = ['/'.join(file.parts[-count:]) for file in files]
        if len(set(names)) == different:
            break
    return names


def _shorten(text: str, width: int, font: Any) -> str:
    """Truncate the start of a text to at most ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'...{text}') > width:
        text = text[1:]
    return f'...{text}'


def _wrap(title: str, width: int, font: Any) -> list[str]:
    """Break a title into lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in title.split():
        longer = f'{lines[-1]} {word}' if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_grid(columns: Mapping[str, Any],
               scale: int = 1,
               per_row: int = 1,
               labels: Sequence[str] | None = None) -> Image.Image:
    """Draw pictures in rows and titled columns.

    Args:
        columns (Mapping[str, Sequence[np.ndarray]]): N pictures for each
            title, uint8, (H, W, 3) each, of one size in a column.
        scale (int): Whole number that pictures are enlarged by. Defaults to 1.
        per_row (int): Number of images side by side. Defaults to 1.
        labels (Sequence[str], optional): N lines of text, below the pictures
            of each image. Defaults to None.

    Returns:
        Image.Image: The sheet, RGB.
    """
    font: Any = ImageFont.load_default(size=14)
    small: Any = font_for(labels or (), 12)
    sizes = {name: (pictures[0].shape[1] * scale, pictures[0].shape[0] * scale)
             for name, pictures in columns.items()}
    titles = {name: _wrap(name, sizes[name][0], font) for name in columns}
    # A long word widens its column.
    widths = {
        name: max([sizes[name][0],
                   *(int(font.getlength(line)) + 2 for line in titles[name])])
        for name in columns
    }
    count = len(next(iter(columns.values())))
    per_row = min(per_row, count)
    top = _MARGIN + 18 * max(map(len, titles.values()))
    height = max(h for _, h in sizes.values()) + (20 if labels else _GAP)
    block = sum(widths.values()) + _GAP * len(columns) + 2 * _MARGIN
    rows = -(-count // per_row)
    sheet = Image.new('RGB', (block * per_row, top + rows * height + _MARGIN),
                      'white')
    draw = ImageDraw.Draw(sheet)
    for i in range(count):
        row, place = divmod(i, per_row)
        x, y = place * block + _MARGIN, top + row * height
        if labels:
            draw.text((x, y + height - 18),
                      _shorten(labels[i], block - 2 * _MARGIN, small),
                      fill='black', font=small)
        for name, pictures in columns.items():
            if row == 0:
                draw.multiline_text((x, _MARGIN // 2), '\n'.join(titles[name]),
                                    fill='black', font=font)
            tile = Image.fromarray(pictures[i]).resize(
                sizes[name], Image.Resampling.NEAREST)
            sheet.paste(tile, (x, y))
            x += widths[name] + _GAP
    return sheet


def save_grid(path: PathLike,
               columns: Mapping[str, Any],
               scale: int = 1,
               per_row: int = 1,
               labels: Sequence[str] | None = None) -> None:
    """Save the picture of :func:`draw_grid`.

    Args:
        path (str | PathLike): The file; its folder is made if missing.
        columns (Mapping[str, Sequence[np.ndarray]]): See :func:`draw_grid`.
        scale (int): Whole number that pictures are enlarged by. Defaults to 1.
        per_row (int): Number of images side by side. Defaults to 1.
        labels (Sequence[str], optional): See :func:`draw_grid`.
    """
    save_picture(path, draw_grid(columns, scale, per_row, labels))


def save_picture(path: PathLike, picture: Image.Image) -> None:
    """Save a picture atomically, in the format of the file's suffix.

    Args:
        path (str | PathLike): The file; its folder is made if missing.
        picture (Image): The picture.

    Raises:
        OSError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        picture.save(temporary)


def fitting_scale(side: int, wanted: int = 160) -> int:
    """Choose an integer factor to enlarge small pictures.

    Args:
        side (int): Side of a picture in pixels.
        wanted (int): Wanted side in pixels. Defaults to 160.

    Returns:
        int: A whole number, 1 or more.
    """
    return max(1, round(wanted / side))


def draw_frames(picture: np.ndarray,
                boxes: Sequence[tuple[int, int, Sequence[int], str]]
                ) -> np.ndarray:
    """Draw frames on a picture.

    Args:
        picture (np.ndarray): uint8, (H, W, 3).
        boxes (Sequence[tuple]): Left and top in pixels, height and width, and
            a colour.

    Returns:
        np.ndarray: A picture with the frames, of the same shape.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for x, y, (height, width), colour in boxes:
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour)
    return np.asarray(image)
