"""Files of predicted masks: PNG, GeoTIFF, overlays and a table."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from ..datasets.decode.tiff import find_rasterio
from ..datasets.names import encode_name
from ..files import atomic_path
from ..packaged import install_command
from ..visualization.image_grid import font_for, save_picture
from .prediction_files import write_columns

# Longest side of an overlay in pixels.
_OVERLAY_SIDE = 1024
# Tags of GeoTIFF: pixel scale, transformation, keys.
_GEO_TAGS = (33550, 34264, 34735)


def write_segments(file: Path, model: Any, images: Any, batch_size: int,
                   window: Optional[int], pictures: Optional[Path]
                   ) -> Dict[str, Any]:
    """Segment images, write masks and a table of the classes' shares.

    Masks are in the folder ``<file's name>_masks``: PNG files of class numbers
    with a palette, and GeoTIFF files of images that are GeoTIFF files.

    Args:
        file (Path): The table, ``.csv`` or ``.parquet``.
        model (FinishedSegmenter): The model.
        images (Any): See :meth:`FinishedSegmenter.predict`.
        batch_size (int): Number of windows in a batch.
        window (int, optional): Side of the windows.
        pictures (Path, optional): Folder for overlays.

    Returns:
        Dict[str, Any]: Numbers of ``images`` and ``unreadable`` ones, and the
        folder ``masks``.
    """
    folder = file.with_name(f'{file.stem}_masks')
    found: List[Any] = []
    masks: List[Optional[str]] = []
    lost = 0
    for one, image in model.predict_iter(images, batch_size, window):
        found.append(one._replace(mask=None))
        masks.append(None)
        if one.mask is None:
            continue
        name = f'{len(found) - 1:06d}_{Path(one.path).stem}'.encode(
            'ascii', 'replace').decode().replace('?', '_')
        is_map = _is_map(one.path)
        lost += is_map and not find_rasterio()
        suffix = '.tif' if is_map and find_rasterio() else '.png'
        target = folder / f'{name}{suffix}'
        masks[-1] = str(target)
        _write_mask(target, one.mask, Path(one.path), len(model.classes))
        if pictures is not None:
            save_picture(pictures / f'{name}.png', draw_overlay(
                image, one.mask, one.shares))
    _write_shares(file, found, masks, model.classes)
    unreadable = sum(bool(one.error) for one in found)
    print(f'{len(found):,} images, {unreadable:,} unreadable; masks in '
          f'{folder}')
    if lost:
        print(f'{lost:,} masks of GeoTIFF files are without coordinates; '
              f'rasterio writes them: `{install_command("geotiff")}`')
    return dict(images=len(found), unreadable=unreadable, masks=str(folder))


def _write_shares(file: Path, found: List[Any], masks: List[Optional[str]],
                  classes: List[str]) -> None:
    """Write the table."""
    columns: Dict[str, List[Any]] = dict(
        path=[encode_name(one.path) for one in found], mask=masks,
        error=[one.error for one in found])
    for name in classes:
        column = name if name not in columns else f'share {name}'
        columns[column] = [one.shares.get(name) for one in found]
    write_columns(file, columns)


def _is_map(path: str) -> bool:
    """Return whether an image is a GeoTIFF file."""
    if not path.lower().endswith(('.tif', '.tiff')) or (
            not Path(path).is_file()):
        return False
    with tifffile.TiffFile(path) as file:
        return any(tag in file.pages.first.tags for tag in _GEO_TAGS)


def _write_mask(file: Path, mask: np.ndarray, source: Path,
                count: int) -> None:
    """Write a mask with a palette, a GeoTIFF file like its source."""
    palette = colours(count)
    if file.suffix == '.png':
        picture = Image.fromarray(mask).convert('P')
        picture.putpalette(palette.tobytes())
        save_picture(file, picture)
        return
    import rasterio
    with rasterio.open(source) as origin:
        place = dict(crs=origin.crs, transform=origin.transform)
        points, points_crs = origin.gcps
    if points:  # ground control points in place of a transform
        place = dict(crs=points_crs, gcps=points)
    with atomic_path(file) as temporary, rasterio.open(
            temporary, 'w', driver='GTiff', width=mask.shape[1],
            height=mask.shape[0], count=1, dtype='uint8', compress='deflate',
            **place) as target:
        target.write(mask, 1)
        target.write_colormap(1, dict(enumerate(map(tuple, palette))))


def draw_overlay(image: np.ndarray, mask: np.ndarray,
                 shares: Mapping[str, float]) -> Image.Image:
    """Draw a mask over an image, with a legend of its classes.

    Args:
        image (np.ndarray): RGB, uint8, (H, W, 3).
        mask (np.ndarray): Class numbers, (H, W).
        shares (Mapping[str, float]): Share of each class, in their order.

    Returns:
        Image.Image: At most 1024 pixels beside the legend.
    """
    palette = colours(len(shares))
    picture = Image.blend(
        Image.fromarray(np.ascontiguousarray(image)),
        Image.fromarray(palette[mask]), 0.5)
    picture.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    lines = [(tuple(palette[number].tolist()),
              encode_name(f'{name} {100 * share:.0f} %'))
             for number, (name, share) in enumerate(shares.items()) if share]
    font: Any = font_for([text for _, text in lines], 12)
    width = max(int(font.getlength(text)) for _, text in lines) + 30
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
    """Give a colour for each class, and black for ignored pixels."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:count] = np.random.default_rng(1).integers(40, 256, (count, 3))
    return palette
