"""List files: paths, paths with labels, and CSV with a header."""
import csv
import io
import json
import os
import re
import stat
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
from mmengine import fileio

from .folders import IMG_EXTENSIONS
from .names import FileNames, decode_name, encode_name

# Columns of a CSV file, by their names without case, spaces and underscores.
_COLUMNS = dict(
    path=('path', 'image', 'img', 'file', 'filename', 'filepath', 'imagepath',
          'imgpath', 'imagefile', 'imagename', 'imagefilename'),
    label=('label', 'gtlabel', 'class', 'target', 'category', 'classname',
           'labelname', 'categoryname', 'classid', 'labelid', 'categoryid'),
    split=('split', 'subset', 'partition'))
# Files of longer lists are looked up for so many lines, evenly spaced.
_MOST_CHECKED = 100_000


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

    names: Sequence[str]
    lines: Sequence[int]
    labels: Optional[List[str]] = None
    split: str = ''


def read_list(path: str, root: str, split: Optional[str] = None) -> ImageList:
    """Read a list of images.

    The list has a path in each line, or a path and a label, which a tab or
    the last space separates, or is a CSV file whose header names the columns.
    A path may be encoded by :func:`~cmae_mm.datasets.names.encode_name`.
    There are no comments. Empty lines are left out. A list of plain paths is
    not read into memory but mapped.

    Args:
        path (str): The file, local or one that mmengine's ``fileio`` reads.
        root (str): What relative paths are relative to.
        split (str, optional): Rows of a CSV file to take, where it has a
            column for that. Defaults to None, all.

    Returns:
        ImageList: Its content.

    Raises:
        SourceError: If it has no images, or a line is wrong; names the line.
    """
    if os.path.isfile(path) and os.path.getsize(path):
        data: np.ndarray = np.memmap(path, np.uint8, 'r')
    else:
        data = np.frombuffer(fileio.get(path), np.uint8)
    start = bytes(data[:3])
    if start[:2] in (b'\xff\xfe', b'\xfe\xff'):  # as PowerShell writes it
        text = data.tobytes().decode('utf-16', 'replace')
        data = np.frombuffer(text.encode(), np.uint8)
    elif start == b'\xef\xbb\xbf':
        data = data[3:]
    lines = FileNames.of_lines(data, _strip)
    header = next((line for line in lines if line), '')
    if not header:
        raise SourceError(f'{path} names no images')
    delimiter = _find_delimiter(header)
    if delimiter:
        found = _read_table(path, data, delimiter, split)
    elif path.lower().endswith(('.csv', '.tsv')):
        raise SourceError(
            f'{path}: the first line must name the columns, one of them '
            f'{", ".join(_COLUMNS["path"][:5])}, but is {header[:80]!r}')
    elif _has_label(header, root):
        found = _read_labelled(path, lines)
    else:
        found = _read_paths(data, lines)
    return found


def _strip(line: str) -> str:
    return line.strip(' \t\r')


def _normal(column: str) -> str:
    return re.sub('[ _-]', '', column.strip().strip('"').lower())


def _find_delimiter(header: str) -> str:
    """Find what separates the columns of a CSV file, '' if it is none."""
    for delimiter in (',', ';', '\t'):
        columns = [_normal(c) for c in header.split(delimiter)]
        if set(columns) & set(_COLUMNS['path']):
            return delimiter
    return ''


def _read_table(path: str, data: np.ndarray, delimiter: str,
                split: Optional[str]) -> ImageList:
    """Read the rows of a CSV file."""
    text = data.tobytes().decode('utf-8', 'surrogateescape')
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter,
                        strict=True)
    names: List[str] = []
    labels: List[str] = []
    lines: List[int] = []
    splits = set()
    columns: List[str] = []
    place: Dict[str, int] = {}
    line = 1
    try:
        for row in reader:
            line, here = reader.line_num + 1, line
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = [_normal(cell) for cell in row]
                place = {kind: columns.index(name)
                         for kind, known in _COLUMNS.items()
                         for name in reversed(known) if name in columns}
                continue
            if len(row) != len(columns):
                raise SourceError(
                    f'{path}, line {here}: there are {len(row)} columns, '
                    f'where the header has {len(columns)}')
            if 'split' in place:
                found = row[place['split']].strip()
                splits.add(found)
                if split and found.lower() != split.lower():
                    continue
            names.append(decode_name(row[place['path']].strip()))
            if not names[-1]:
                raise SourceError(f'{path}, line {here}: there is no path')
            lines.append(here)
            if 'label' in place:
                labels.append(row[place['label']].strip())
                if not labels[-1]:
                    raise SourceError(f'{path}, line {here}: there is no '
                                      'label')
    except csv.Error as error:
        raise SourceError(f'{path}, line {line}: {error}') from error
    if not names:
        raise SourceError(
            f'{path} has no rows' + (
                f' of the split {split!r}, but of '
                f'{", ".join(map(repr, sorted(splits)))}' if splits else ''))
    return ImageList(FileNames.of([names]), lines, labels or None,
                     split if split and splits else '')


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _split_line(line: str) -> Tuple[str, str]:
    """Split a line into a path and a label, '' if there is none."""
    if line.startswith('"'):
        try:
            name, end = json.JSONDecoder().raw_decode(line)
            return name, line[end:].strip()
        except ValueError:
            pass
    name, _, label = line.rpartition('\t' if '\t' in line else ' ')
    return (_strip(name), label) if name else (label, '')


def _has_label(line: str, root: str) -> bool:
    """Tell whether a line has a path and a label."""
    name, label = _split_line(line)
    if not label or os.path.isfile(os.path.join(root, decode_name(line))):
        return False
    return os.path.isfile(os.path.join(root, name)) or (
        _is_image(name) and not _is_image(line))


def _read_labelled(path: str, lines: FileNames) -> ImageList:
    numbers: List[int] = []
    labels: List[str] = []

    def names() -> Iterator[List[str]]:
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            name, label = _split_line(line)
            if not label or _is_image(line):
                raise SourceError(
                    f'{path}, line {number}: there is no label after '
                    f'{encode_name(line)}, as there is after the first path')
            numbers.append(number)
            labels.append(label)
            yield [name]

    return ImageList(FileNames.of(names()), numbers, labels)


def _decode_line(line: str) -> str:
    return decode_name(_strip(line))


def _read_paths(data: np.ndarray, lines: FileNames) -> ImageList:
    names = FileNames.of_lines(data, _decode_line)
    # An empty line begins with its end, or with white space.
    first = data[np.append(0, lines.ends[:-1] + 1)]
    empty = {i for i in np.flatnonzero(first <= ord(' ')).tolist()
             if not names[i]}
    if not empty:
        return ImageList(names, range(1, len(names) + 1))
    kept = [i for i in range(len(names)) if i not in empty]
    return ImageList(FileNames.of([names[i]] for i in kept),
                     [i + 1 for i in kept])


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
    chosen = range(count) if count <= _MOST_CHECKED else np.unique(
        np.linspace(0, count - 1, _MOST_CHECKED).astype(int)).tolist()
    faults = []
    for index in chosen:
        fault = _find_fault(os.path.join(root, found.names[index]))
        if fault:
            faults.append((index, fault))
    if faults:
        index, fault = faults[0]
        name = found.names[index]
        hint = ''
        if found.labels is None and _has_label(name, root):
            hint = '; it has a label, which the first line has not'
        elif not os.path.isabs(name):
            hint = f'; paths are relative to {root}'
        more = f' ({len(faults):,} of {len(chosen):,} lines are wrong)'
        raise SourceError(
            f'{path}, line {found.lines[index]}: {encode_name(name)} {fault}'
            f'{more if len(faults) > 1 else ""}{hint}')
    return '' if len(chosen) == count else (
        f'of which {len(chosen):,} were looked up')


def _find_fault(path: str) -> str:
    """Say what is wrong with a file, '' if it is a regular one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return 'is a dangling link' if os.path.islink(path) else (
            'does not exist')
    except (OSError, ValueError) as error:
        return f'cannot be reached ({getattr(error, "strerror", error)})'
    return '' if stat.S_ISREG(mode) else describe_kind(mode)


def describe_kind(mode: int) -> str:
    """Say what a file is that is not a regular one."""
    if stat.S_ISDIR(mode):
        return 'is a folder'
    return 'is not a regular file but a FIFO, socket or device'


def parse_labels(path: str, found: ImageList) -> Tuple[Any, Any]:
    """Give the labels of a list as numbers.

    Args:
        path (str): The list.
        found (ImageList): Its content, with labels.

    Returns:
        tuple: Labels, int64, (N, ), and the sorted names of the classes, or
        None where labels are whole numbers.

    Raises:
        SourceError: If numbers and names are mixed, or a number is negative.
    """
    texts = found.labels or []
    numeric = [bool(re.fullmatch(r'-?\d{1,18}(\.0+)?', text))
               for text in texts]
    if len(set(numeric)) > 1:
        index = numeric.index(not numeric[0])
        raise SourceError(
            f'{path}, line {found.lines[index]}: the label {texts[index]!r} '
            f'is {"a number" if numeric[index] else "no number"}, unlike '
            f'{texts[0]!r} before it; all must be numbers, or all names')
    if not numeric[0]:
        classes = sorted(set(texts))
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[text] for text in texts], np.int64), classes
    labels = np.array([int(text.split('.')[0]) for text in texts], np.int64)
    if labels.min() < 0:
        index = int(labels.argmin())
        raise SourceError(f'{path}, line {found.lines[index]}: labels are '
                          f'whole numbers from 0, but this is {texts[index]}')
    return labels, None
