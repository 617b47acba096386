"""Tables, masks and pictures of predictions."""
import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tifffile
from PIL import Image

from ..config import ArgumentError
from ..datasets.decode.maps import find_rasterio
from ..datasets.names import add_reason, encode_name
from ..dependencies import install_command
from ..files import atomic_path, write_file
from ..visualization.image_grid import save_picture
from .classifier import Prediction
from .pictures import colours, draw_sheet, to_picture

# Number of images per class in a sheet.
_MOST_SHOWN = 30
# Tags of GeoTIFF: pixel scale, transformation, keys.
_GEO_TAGS = (33550, 34264, 34735)
_BOX = ('class', 'score', 'x1', 'y1', 'x2', 'y2')


def predict_to_files(model: Any, images: Path, batch_size: int,
                     window: int | None, out: Path | None,
                     pictures: Path | None, top_k: int, all_scores: bool
                     ) -> dict[str, Any]:
    """Predict images, write a table and draw pictures.

    Args:
        model (FinetunedModel): The model.
        images (Path): See :meth:`FinetunedModel.predict`.
        batch_size (int): Images or windows of a batch.
        window (int, optional): Side of windows.
        out (Path, optional): Table, ``.csv`` or ``.parquet``; None to return
            predictions.
        pictures (Path, optional): Folder of pictures, None for none.
        top_k (int): Number of classes in a row.
        all_scores (bool): Whether to add a column for each class.

    Returns:
        dict[str, Any]: Numbers of ``images`` and ``unreadable`` ones, and of
        each class in ``counts``, or of ``boxes``; the folder of ``masks``;
        ``out``, or the ``predictions``.

    Raises:
        ArgumentError: If an option is for another task.
    """
    is_dense = model.task in ('segment', 'detect')
    if is_dense and (top_k > 1 or all_scores):
        raise ArgumentError(f'top_k and all_scores are for classifiers; this '
                            f'model is for the task {model.task}')
    masks = _Masks(out, len(model.classes)) if out and (
        model.task == 'segment') else None
    found: list[Any] = []
    rows: list[Any] = []
    drawn: list[tuple[Prediction, Any]] = []
    for number, one in enumerate(model.run(images, batch_size, window)):
        prediction = model.name_result(one)
        name = f'{number:06d}_{_file_name(Path(one.name).stem)}'
        if masks:
            mask = masks.write(name, prediction)
            prediction = prediction._replace(mask=None)
            rows.append((one, dict(mask=mask), prediction.shares))
        elif model.task == 'detect':
            rows += [(one, dict(zip(_BOX, box)), {})
                     for box in prediction.boxes or [(None, ) * len(_BOX)]]
        elif not is_dense:
            rows.append((one, _name_classes(prediction, top_k), dict(
                prediction.scores) if all_scores else {}))
        found.append(prediction)
        if not pictures or one.error:
            continue
        if is_dense:
            save_picture(pictures / f'{name}.png', model.draw(one))
        else:
            drawn.append((prediction, one.source))
    if out:
        names = model.classes if all_scores or masks else ()
        write_columns(out, make_columns(rows, names))
    if pictures and not is_dense:
        _draw_sheets(model, drawn, pictures)
    result: dict[str, Any] = dict(
        images=len(found), unreadable=sum(bool(one.error) for one in found))
    text = [f'{len(found):,} images, {result["unreadable"]:,} unreadable']
    if not is_dense:
        counts = Counter(name for one in found if not one.error
                         for name in one.labels())
        result['counts'] = dict(counts)
        text += [f'{n:,} {encode_name(str(c))}'
                 for c, n in counts.most_common(10)]
    elif model.task == 'detect':
        result['boxes'] = sum(len(one.boxes) for one in found)
        text.append(f'{result["boxes"]:,} boxes')
    elif masks:
        result['masks'] = str(masks.folder)
        text.append(f'masks in {masks.folder}')
    print('; '.join([text[0], ', '.join(text[1:])] if text[1:] else text))
    for what, path in (('table', out), ('pictures', pictures)):
        if path:
            print(f'Wrote the {what} {path}')
    if result['unreadable']:
        one = next(one for one in found if one.error)
        print(f'unreadable, the first: {add_reason(one.path, one.error)}')
    if masks and masks.lost:
        print(f'{masks.lost:,} masks of GeoTIFF files have no coordinates; '
              'install rasterio to write them: '
              f'`{install_command("geotiff")}`')
    if out is None:
        return dict(result, predictions=found)
    return dict(result, out=str(out))


def _name_classes(one: Prediction, top_k: int) -> dict[str, Any]:
    """Arrange the highest scores of an image in columns."""
    ranked: list[Any] = [*one.scores.items()] or [(None, None)] * top_k
    columns: dict[str, Any] = {}
    for rank, (name, score) in enumerate(ranked[:top_k]):
        end = f'_{rank + 1}' if rank else ''
        columns.update({f'class{end}': name, f'score{end}': score})
    if isinstance(one.label, list):
        columns['labels'] = '|'.join(one.label)
    return columns


def make_columns(rows: list[Any], classes: Any) -> dict[str, list[Any]]:
    """Arrange rows in columns.

    Args:
        rows (list[tuple]): An image, its columns, and its value of each class.
        classes (Sequence[str]): Classes with a column.

    Returns:
        dict[str, list[Any]]: ``path``, the columns, ``error`` and classes.
    """
    columns: dict[str, list[Any]] = dict(
        path=[encode_name(one.name) for one, _, _ in rows])
    for name in dict.fromkeys(n for _, values, _ in rows for n in values):
        columns[name] = [values.get(name) for _, values, _ in rows]
    columns['error'] = [one.error for one, _, _ in rows]
    for name in classes:
        column = name if name not in columns else f'of {name}'
        columns[column] = [values.get(name) for _, _, values in rows]
    return columns


def write_columns(file: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write columns of a table as CSV or parquet."""
    if file.suffix.lower() == '.csv':
        text = io.StringIO(newline='')
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(columns)
        for row in zip(*columns.values()):
            writer.writerow(f'{v:.6g}' if isinstance(v, float) else v
                            for v in row)
        write_file(file, text.getvalue())
        return
    import pyarrow
    import pyarrow.parquet as parquet
    with atomic_path(file) as target:
        parquet.write_table(pyarrow.table(dict(columns)), str(target))


def _draw_sheets(model: Any, found: list[tuple[Prediction, Any]],
                 folder: Path) -> None:
    """Draw a sheet of images of each predicted class."""
    gone = 0
    for number, name in enumerate(model.classes):
        chosen = [(one, source) for one, source in found
                  if name in one.labels()]
        chosen.sort(key=lambda pair: -pair[0].scores[name])
        shown = []
        for one, source in chosen[:_MOST_SHOWN]:
            try:
                image = model.crop(model.read(source, False))
            except OSError:  # removed since the prediction
                gone += 1
                continue
            shown.append((to_picture(image),
                          f'{one.scores[name]:.2f} {Path(one.path).name}'))
        draw_sheet(folder / f'{number:02d}_{_file_name(name)}.png',
                   encode_name(name), shown)
    if gone:
        print(f'{gone:,} images cannot be drawn, because they were removed')


def _file_name(text: str) -> str:
    """Replace characters that are invalid in file names."""
    return ''.join(c if c.isalnum() or c in ' ._-' else '_'
                   for c in text).strip('. ')[:60] or 'class'


class _Masks:
    """Files of masks, in the folder ``<name of the table>_masks``.

    PNG files of class numbers with a palette; GeoTIFF files if the images are
    GeoTIFF files.
    """

    def __init__(self, table: Path, count: int) -> None:
        self.folder = table.with_name(f'{table.stem}_masks')
        self.palette = colours(count)
        self.lost = 0

    def write(self, name: str, one: Any) -> str | None:
        """Write a mask; return its path, None for an unreadable image."""
        if one.mask is None:
            return None
        save: Callable = self._save_png
        if _is_map(one.path):
            if find_rasterio():
                save = self._save_map
            else:
                self.lost += 1
        suffix = '.png' if save == self._save_png else '.tif'
        file = self.folder / f'{name}{suffix}'
        save(file, one)
        return str(file)

    def _save_png(self, file: Path, one: Any) -> None:
        picture = Image.fromarray(one.mask).convert('P')
        picture.putpalette(self.palette.tobytes())
        save_picture(file, picture)

    def _save_map(self, file: Path, one: Any) -> None:
        """Write a GeoTIFF file with the coordinates of the image."""
        import rasterio
        with rasterio.open(one.path) as origin:
            place = dict(crs=origin.crs, transform=origin.transform)
            points, points_crs = origin.gcps
        if points:  # ground control points instead of a transform
            place = dict(crs=points_crs, gcps=points)
        height, width = one.mask.shape
        with atomic_path(file) as temporary, rasterio.open(
                temporary, 'w', driver='GTiff', width=width, height=height,
                count=1, dtype='uint8', compress='deflate', **place) as target:
            target.write(one.mask, 1)
            target.write_colormap(
                1, dict(enumerate(map(tuple, self.palette))))


def _is_map(path: str) -> bool:
    """Return whether an image is a GeoTIFF file."""
    if not path.lower().endswith(('.tif', '.tiff')) or (
            not Path(path).is_file()):
        return False
    with tifffile.TiffFile(path) as file:
        return any(tag in file.pages.first.tags for tag in _GEO_TAGS)
