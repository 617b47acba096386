"""Tables and sheets of predictions."""
import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from ..datasets.names import encode_name
from ..files import atomic_path, write_file
from .finished_model import (
    FinishedModel,
    Prediction,
    draw_crops,
    name_images,
)

# Images of each class in a sheet.
_MOST_SHOWN = 30


def describe(found: Sequence[Prediction]) -> Dict[str, Any]:
    """Count the predictions of each class, and print them in one line."""
    counts = Counter(
        name for one in found if not one.error for name in (
            one.label if isinstance(one.label, list) else [one.label]))
    unreadable = sum(bool(one.error) for one in found)
    print(f'{len(found):,} images, {unreadable:,} unreadable; ' + ', '.join(
        f'{n:,} {encode_name(str(c))}' for c, n in counts.most_common(10)))
    return dict(images=len(found), unreadable=unreadable, counts=dict(counts))


def make_table(found: Sequence[Prediction], classes: Sequence[str],
               top_k: int, all_scores: bool) -> Dict[str, List[Any]]:
    """Arrange predictions in columns.

    Args:
        found (Sequence[Prediction]): N predictions.
        classes (Sequence[str]): Names of the classes.
        top_k (int): Number of classes in a row.
        all_scores (bool): Whether to add a column for each class.

    Returns:
        Dict[str, List[Any]]: Columns of N values; None in rows of unreadable
        images.
    """
    columns: Dict[str, List[Any]] = dict(
        path=[encode_name(one.path) for one in found])
    for rank in range(top_k):
        end = f'_{rank + 1}' if rank else ''
        ranked = [[*one.scores.items()][rank] if one.scores else (None, None)
                  for one in found]
        columns[f'class{end}'] = [name for name, _ in ranked]
        columns[f'score{end}'] = [value for _, value in ranked]
    if any(isinstance(one.label, list) for one in found):
        columns['labels'] = ['|'.join(one.label or ()) for one in found]
    columns['error'] = [one.error for one in found]
    if all_scores:
        for name in classes:
            column = name if name not in columns else f'score {name}'
            columns[column] = [one.scores.get(name) for one in found]
    return columns


def write_table(file: Path, found: Sequence[Prediction],
                model: FinishedModel, top_k: int, all_scores: bool) -> None:
    """Write predictions as CSV or parquet.

    Args:
        file (Path): The file, ``.csv`` or ``.parquet``.
        found (Sequence[Prediction]): The predictions.
        model (FinishedModel): The model.
        top_k (int): Number of classes in a row.
        all_scores (bool): Whether to add a column for each class.
    """
    write_columns(file, make_table(
        found, model.classes, min(top_k, len(model.classes)), all_scores))


def write_columns(file: Path, columns: Mapping[str, List[Any]]) -> None:
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


def draw_predictions(model: FinishedModel, found: Sequence[Prediction],
                     images: Path, folder: Path) -> List[Path]:
    """Draw a sheet of images for each predicted class.

    Args:
        model (FinishedModel): The model.
        found (Sequence[Prediction]): Its predictions.
        images (Path): What was predicted.
        folder (Path): Folder of the sheets.

    Returns:
        List[Path]: The sheets.
    """
    sources = dict(name_images(images))
    files = []
    for number, name in enumerate(model.classes):
        shown = [one for one in found if not one.error and name in (
            one.label if isinstance(one.label, list) else [one.label])]
        shown.sort(key=lambda one: -one.scores[name])
        if not shown:
            continue
        file = folder / f'{number:02d}_{_file_name(name)}.png'
        draw_crops(model, file, encode_name(name), [
            (sources[one.path],
             f'{one.scores[name]:.2f} {Path(one.path).name}')
            for one in shown[:_MOST_SHOWN]])
        files.append(file)
    return files


def _file_name(text: str) -> str:
    """Replace characters that a file name cannot have."""
    return ''.join(c if c.isalnum() or c in ' ._-' else '_'
                   for c in text).strip('. ')[:60] or 'class'
