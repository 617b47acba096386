"""List files: paths, paths with labels, and CSV with a header."""
import csv
import io
import json
import os
import re
import stat
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmengine import fileio

from .folders import IMG_EXTENSIONS
from .names import FileNames, decode_name, encode_name

# Columns of a CSV file, by their names without case, spaces and underscores;
# of several the first one counts.
_COLUMNS = dict(
    path=('path', 'image', 'img', 'file', 'filename', 'filepath', 'imagepath',
          'imgpath', 'imagefile', 'imagename', 'imagefilename'),
    label=('label', 'gtlabel', 'class', 'target', 'category', 'classname',
           'labelname', 'categoryname', 'classid', 'labelid', 'categoryid'),
    split=('split', 'subset', 'partition'))
# Of longer lists so many files are looked up, evenly spaced.
_MOST_CHECKED = 100_000
Rows = Iterator[Tuple[int, List[str]]]


class SourceError(ValueError):
    """Images that cannot be listed or read; the message says why."""


class ImageList(NamedTuple):
    """What a list file has.

    Args:
        names (FileNames): Paths as the list has them.
        lines (Sequence[int]): Number of each one's line, from 1.
        labels (List[str] | None): Text of each one's label.
        split (str): The split whose rows these are, '' for all.
    """

    names: FileNames
    lines: Sequence[int]
    labels: Optional[List[str]] = None
    split: str = ''


def read_list(path: str, root: str, splits: Sequence[str] = ()) -> ImageList:
    """Read a list of images.

    The list has a path in each line, or a path and a label, which a tab or
    the last space separates, or is a CSV file whose header names the columns.
    A path may be encoded by :func:`~cmae_mm.datasets.names.encode_name`.
    There are no comments. Empty lines are left out. A list of plain paths is
    not read into memory but mapped.

    Args:
        path (str): The file, local or one that mmengine's ``fileio`` reads.
        root (str): What relative paths are relative to.
        splits (Sequence[str]): The first of these that a CSV file's column
            of splits has is taken. Defaults to all rows.

    Returns:
        ImageList: Its content.

    Raises:
        SourceError: If it has no images, or a line is wrong; names the line.
    """
    data: np.ndarray = np.memmap(path, np.uint8, 'r') if (
        os.path.isfile(path) and os.path.getsize(path)) else np.frombuffer(
            fileio.get(path), np.uint8)
    if bytes(data[:2]) in (b'\xff\xfe', b'\xfe\xff'):  # as of PowerShell
        text = data.tobytes().decode('utf-16', 'replace')
        data = np.frombuffer(text.encode(), np.uint8)
    data = data[3:] if bytes(data[:3]) == b'\xef\xbb\xbf' else data
    lines = FileNames.of_lines(data, _strip)
    header = next(filter(None, lines), '')
    delimiter = next((d for d in ',;\t' if {*map(_normal, header.split(d))}
                      & {*_COLUMNS['path']}), '')
    if not header:
        raise SourceError(f'{path} names no images')
    if delimiter:
        return _read_rows(path, _csv_rows(path, data, delimiter), splits)
    if path.lower().endswith(('.csv', '.tsv')):
        raise SourceError(
            f'{path}: the first line must name the columns, one of them '
            f'{", ".join(_COLUMNS["path"][:5])}, but is {header[:80]!r}')
    if _has_label(header, root):
        return _read_rows(path, _labelled_rows(lines), ())
    names = FileNames.of_lines(data, _decode)
    # Lines with nothing in them begin with their end or with white space.
    first = data[np.append(0, lines.ends[:-1] + 1)]
    empty = {i for i in np.flatnonzero(first <= 32).tolist() if not names[i]}
    if not empty:
        return ImageList(names, range(1, len(names) + 1))
    kept = [i for i in range(len(names)) if i not in empty]
    return ImageList(names.select(kept), [i + 1 for i in kept])


def _strip(text: str) -> str:
    return text.strip(' \t\r')


def _decode(line: str) -> str:
    return decode_name(_strip(line))


def _normal(column: str) -> str:
    return re.sub('[ _"-]', '', column.strip().lower())


def _csv_rows(path: str, data: np.ndarray, delimiter: str) -> Rows:
    """Give the rows of a CSV file, each with the number of its first line."""
    text = data.tobytes().decode('utf-8', 'surrogateescape')
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter,
                        strict=True)
    line = 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f'{path}, line {line}: {error}') from error


def _labelled_rows(lines: FileNames) -> Rows:
    """Give paths and labels as rows of a table with a header."""
    yield 0, ['path', 'label']
    for number, line in enumerate(lines, 1):
        if line:
            is_path = line.lower().endswith(IMG_EXTENSIONS)
            yield number, [line] if is_path else [*split_line(line)]


def _read_rows(path: str, rows: Rows, splits: Sequence[str]) -> ImageList:
    """Read the rows of a table, the first of which names the columns."""
    columns = [_normal(cell) for cell in next(rows)[1]]
    places = [next((columns.index(name) for name in known if name in columns),
                   None) for known in _COLUMNS.values()]
    found: List[Tuple[int, str, str, str]] = []
    for line, row in rows:
        cells = ['' if place is None else _strip(row[place])
                 for place in places] if len(row) == len(columns) else []
        if not cells or not all(
                cell for cell, place in zip(cells[:2], places)
                if place is not None):
            raise SourceError(
                f'{path}, line {line}: needed are {len(columns)} columns with '
                f'a path{" and a label" if places[1] is not None else ""}, '
                f'but the line is {encode_name(",".join(row))[:80]}')
        found.append((line, decode_name(cells[0]), cells[1], cells[2]))
    has = {row[3].lower() for row in found}
    split = next((s for s in splits if s.lower() in has), '')
    if splits and places[2] is not None:
        found = [row for row in found if row[3].lower() == split.lower()]
    if not found:
        raise SourceError(f'{path} has no rows' + (
            f' of the split {" or ".join(splits)}, but of '
            f'{", ".join(sorted(has))}' if has else ''))
    return ImageList(
        FileNames.of([[row[1] for row in found]]),
        [row[0] for row in found],
        None if places[1] is None else [row[2] for row in found], split)


def split_line(line: str) -> Tuple[str, str]:
    """Split a line into an encoded path and a label, '' if there is none."""
    if line.startswith('"'):
        try:
            _, end = json.JSONDecoder().raw_decode(line)
            return line[:end], _strip(line[end:])
        except ValueError:
            pass
    name, _, label = line.rpartition('\t' if '\t' in line else ' ')
    return (_strip(name), label) if name else (label, '')


def _has_label(line: str, root: str) -> bool:
    """Tell whether a line has a path and a label."""
    name, label = map(decode_name, split_line(line))
    if not label or os.path.isfile(os.path.join(root, decode_name(line))):
        return False
    return os.path.isfile(os.path.join(root, name)) or (
        name.lower().endswith(IMG_EXTENSIONS)
        and not line.lower().endswith(IMG_EXTENSIONS))


def check_files(path: str, root: str, found: ImageList) -> str:
    """Check that the files of a list are there.

    Args:
        path (str): The list.
        root (str): What relative paths are relative to.
        found (ImageList): Its content.

    Returns:
        str: What was not checked, '' if all were.

    Raises:
        SourceError: If one is not there or is no regular file; names its
            line.
    """
    count = len(found.names)
    chosen = np.unique(np.linspace(
        0, count - 1, min(count, _MOST_CHECKED)).astype(int)).tolist()
    faults = [index for index in chosen
              if _find_fault(os.path.join(root, found.names[index]))]
    if not faults:
        return '' if len(chosen) == count else (
            f'{len(chosen):,} of the files were looked up')
    name = found.names[faults[0]]
    hint = f'; paths are relative to {root}'
    if len(faults) == len(chosen):
        hint += ', and each line has a path, or a path and a label'
    if found.labels is None and _has_label(name, root):
        hint = '; it has a label, which the first line has not'
    more = f' ({len(faults):,} of {len(chosen):,} lines are wrong)'
    raise SourceError(
        f'{path}, line {found.lines[faults[0]]}: {encode_name(name)} '
        f'{_find_fault(os.path.join(root, name))}'
        f'{more if len(faults) > 1 else ""}{hint}')


def _find_fault(path: str) -> str:
    """Say what is wrong with a file, '' if it is a regular one."""
    try:
        return describe_kind(os.stat(path).st_mode)
    except FileNotFoundError:
        return 'is a dangling link' if os.path.islink(path) else (
            'does not exist')
    except (OSError, ValueError) as error:
        return f'cannot be reached ({getattr(error, "strerror", error)})'


def describe_kind(mode: int) -> str:
    """Say what a file is, '' for a regular one."""
    if stat.S_ISDIR(mode):
        return 'is a folder'
    return '' if stat.S_ISREG(mode) else (
        'is not a regular file but a FIFO, socket or device')


def parse_labels(path: str, found: ImageList) -> Tuple[Any, Any]:
    """Give the labels of a list as numbers.

    Args:
        path (str): The list.
        found (ImageList): Its content.

    Returns:
        tuple: Labels, int64, (N, ), and the sorted names of the classes, or
        None where labels are whole numbers.

    Raises:
        SourceError: If there are none, or numbers and names are mixed.
    """
    if found.labels is None:
        raise SourceError(
            f'{path} has no labels: needed are lines "<path> <label>", or a '
            'CSV file with the columns path and label')
    numeric = [bool(re.fullmatch(r'\d{1,18}(\.0+)?', text))
               for text in found.labels]
    if len(set(numeric)) > 1:
        index = numeric.index(not numeric[0])
        raise SourceError(
            f'{path}, line {found.lines[index]}: the label '
            f'{found.labels[index]!r} is {"" if numeric[index] else "not "}a '
            f'whole number from 0, unlike {found.labels[0]!r} before it')
    if numeric[0]:
        return np.array([int(text.split('.')[0]) for text in found.labels],
                        np.int64), None
    classes, labels = np.unique(found.labels, return_inverse=True)
    return labels.astype(np.int64), classes.tolist()
