"""Listing of images in a folder or in a list file.

A list file has a path in each line, or a path and a label, or is a CSV file
with a header.
"""
import csv
import io
import json
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .names import FileNames, decode_name, encode_name

_DICOM = ('.dcm', '.dicom')
IMG_EXTENSIONS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.ppm', '.pgm',
    '.pbm', '.pnm', '.bmp', '.dib', '.webp', '.gif', '.tif', '.tiff', '.jp2',
    '.j2k', '.j2c', '.jpc', '.jpx', '.avif', '.heic', '.heif', '.hif', '.jxl',
    '.npy', '.npz', *_DICOM)
# Names of the parts of a data set, in order of preference.
PART_NAMES = dict(
    train=('train', 'training'),
    val=('val', 'valid', 'validation', 'dev'),
    test=('test', 'testing'))
# Formats that need a plugin of Pillow, by suffix.
_PLUGIN_OF = {'.heic': 'HEIF', '.heif': 'HEIF', '.hif': 'HEIF',
              '.avif': 'AVIF', '.jxl': 'JXL'}
_SCENE = 'one-band scene file'
# Advice for unsupported files, by suffix or kind.
_CONVERSION_HINTS = {ending: way for way, endings in {
    'volumes: the script in docs/image-formats.md writes their slices':
        '.nii .nii.gz .mha .mhd .nrrd .mgz .mnc',
    'whole slides and microscope files: write tiled TIFF files, as `vips '
    'tiffsave SLIDE OUT.tif --tile --compression jpeg` or QuPath does':
        '.svs .ndpi .mrxs .scn .vms .vmu .svslide .bif .czi .lif .nd2 .vsi '
        '.oib .oif .isyntax .ims .qptiff',
    'videos: `ffmpeg -i VIDEO -vf fps=1 FRAME_%06d.png` writes frames':
        '.mp4 .mov .avi .mkv .webm .m4v .wmv .mpg .mpeg .3gp .mts .m2ts',
    'raw files of cameras: write TIFF files of 16 bits, as `dcraw -T -6` does':
        '.cr2 .cr3 .nef .arw .dng .raf .orf .rw2',
    'arrays: save each image with numpy.save':
        '.h5 .hdf5 .nc .mat .fits',
    'archives: unpack them': '.zip .tgz .tar.gz .7z .rar',
    'tables: write a CSV file with the columns path and label':
        '.xlsx .xls .ods .parquet .feather .pkl .pickle',
    'images that need `pip install pillow-heif`':
        '.heic .heif .hif',
    'images that need `pip install pillow-jxl-plugin`': '.jxl',
    'images that need `pip install pillow-avif-plugin`': '.avif',
}.items() for ending in endings.split()}
_CONVERSION_HINTS[_SCENE] = (
    'bands of a scene: stack them, as `rio stack B02.jp2 B03.jp2 B04.jp2 -o '
    'SCENE.tif --driver GTiff --co tiled=yes` does')
# Names of files with one band of a scene: Sentinel-2's and Landsat's.
_BAND = re.compile(
    r'(.*?)(B\d\d?|B8A|AOT|WVP|SCL)(_\d\dm)?\.(jp2|tiff?)', re.IGNORECASE)
_SCENE_NAME = re.compile(r'T\d\d[A-Z]{3}_\d{8}T\d{6}|^L[COTEM]\d\d_',
                         re.IGNORECASE)
# Classes of DICOM objects without pixels: waveforms, presentation states, raw
# data, registrations, measurements, reports, documents, protocols, radiation
# plans and structures, and directories.
_NO_PIXELS = re.compile(
    rb'\x02\0\x02\0UI..1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|11|'
    rb'66(?!\.[478])|67|68|78|79|88|104|200|481\.([3-9]|\d\d)))(?!\d)',
    re.DOTALL)
# System files and folders, in addition to names that start with a dot.
_SYSTEM_NAMES = {
    '__macosx', '__pycache__', '@eadir', '@tmp', '#recycle', '#snapshot',
    '@recycle', '@recently-snapshot', '~snapshot', '$recycle.bin', 'recycler',
    'system volume information', 'lost+found', 'thumbs.db', 'ehthumbs.db',
    'ehthumbs_vista.db', 'desktop.ini', 'icon\r', 'network trash folder',
    'temporary items'
}
# Column names of a CSV file, ignoring case, spaces and underscores; the first
# match is used.
_COLUMNS = dict(
    path=('path', 'image', 'img', 'file', 'filename', 'filepath', 'imagepath',
          'imgpath', 'imagefile', 'imagename', 'imagefilename'),
    label=('label', 'gtlabel', 'class', 'target', 'category', 'classname',
           'labelname', 'categoryname', 'classid', 'labelid', 'categoryid'),
    split=('split', 'subset', 'partition'))
# Cells of a column of 0 and 1, in lower case.
_ZERO, _ONE = ('0', '0.0', 'false'), ('1', '1.0', 'true')
_MISSING = ('', 'nan', 'na', 'n/a', 'none', 'null')
# Advice for lines of a list that are no path of an image.
_HINTS = {
    r'~': '~ is not replaced; write the whole path',
    r'\w+://': 'addresses are not read; copy the images to a disk',
    r'[\[{]': 'JSON is not read; write a CSV file with the columns path and '
               'label',
    r'.*\.\w+[,;]': 'a table needs a first line with the column names, such '
                    'as path,label; otherwise a tab or a space separates path '
                    'and label'}
# Number of files of a long list to check, evenly spaced.
_MOST_CHECKED = 100_000
Rows = Iterator[tuple[int, list[str]]]


class SourceError(ValueError):
    """Images that cannot be listed or read."""


def case_variants(names: Iterable[str]) -> list[str]:
    """Return names as they are, in lower case, capitalised, in capitals."""
    return list(dict.fromkeys(f(n) for n in names for f in (
        str, str.lower, str.title, str.upper)))


class MissingSplit(SourceError):
    """A split that does not exist."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or belongs to the system."""
    return name.startswith('.') or name.lower() in _SYSTEM_NAMES


def describe_kind(mode: int) -> str:
    """Describe the kind of a file; '' for a regular one."""
    if stat.S_ISDIR(mode):
        return 'is a folder'
    return '' if stat.S_ISREG(mode) else (
        'is not a regular file but a FIFO, socket or device')


class SkippedFiles:
    """Number of skipped files by kind, with the first example of each."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a file or folder of a kind: a suffix, or a singular noun."""
        self.counts[kind] += 1
        self._examples.setdefault(kind, name)

    def __str__(self) -> str:
        parts = []
        for kind, count in sorted(self.counts.items(), key=lambda item: (
                item[0][0] != '.', -item[1], item[0])):
            first = encode_name(self._examples[kind])
            parts.append(f'{count:,} {kind}' if kind[0] == '.' else (
                f'{count:,} {kind}s (first: {first})' if count > 1 else
                f'1 {kind} ({first})'))
        ways: dict[str, list[str]] = {}
        for kind in sorted(self.counts.keys() & _CONVERSION_HINTS.keys()):
            ways.setdefault(_CONVERSION_HINTS[kind], []).append(kind)
        return '; '.join(filter(None, [
            f'skipped: {", ".join(parts)}' if parts else '',
            *(f'{", ".join(kinds)}: {way}' for way, kinds in ways.items())]))


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, both of a .gz file."""
    stem, ending = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1] if ending == '.gz' else '') + ending


def conversion_hint(name: str) -> str:
    """Return advice for an unsupported file, or ''."""
    return _CONVERSION_HINTS.get(suffix_of(name), '')


class FolderListing:
    """The images below a folder, sorted by name.

    Only regular files are listed. Links to files and folders are followed. A
    link to a folder is skipped if that folder is listed anyway, by its own
    path below the root or through an earlier link, or is a parent folder.

    Args:
        root (str): The folder.
        extensions (Sequence[str]): Endings of image files, in lower case.

    Attributes:
        skipped (SkippedFiles): Files and folders skipped so far.
        empty (list[str]): Folders without images found so far.
    """

    def __init__(self, root: str, extensions: Sequence[str]) -> None:
        self.root = root
        self.skipped = SkippedFiles()
        self.empty: list[str] = []
        self._extensions = tuple(extensions)
        self._real_root = os.path.realpath(root)
        self._followed: set[str] = {self._real_root}

    def groups(self, folder: str = '') -> Generator[list[str], None, bool]:
        """List a folder.

        Args:
            folder (str): The folder, relative to the root, with a slash at
                its end. Defaults to '', the root.

        Yields:
            list[str]: Names of images, relative to the root.

        Returns:
            bool: Whether there are images.

        Raises:
            OSError: If the root cannot be read.
        """
        found = False
        group: list[str] = []
        for name in self._entries(folder):
            if not name.endswith('/'):
                group.append(name)
                continue
            if group:
                yield group
                found, group = True, []
            found |= yield from self.groups(name)
        if group:
            yield group
        elif not found:
            self.empty.append(folder[:-1])
        return bool(group) or found

    def _entries(self, folder: str) -> list[str]:
        """List images, and folders with a slash at the end."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if not folder:
                raise
            self.skipped.add('unreadable folder', folder[:-1])
            return []
        names = []
        bands = _find_bands([entry.name for entry in entries])
        for entry in entries:
            name = folder + entry.name
            kind = _SCENE if entry.name in bands else self._kind(entry)
            if kind in ('', '/'):
                names.append(name + kind)
            else:
                self.skipped.add(kind, name)
        return sorted(names)

    def _kind(self, entry: 'os.DirEntry[str]') -> str:
        """Return '' for an image, '/' for a folder, else why it is skipped."""
        if is_hidden(entry.name):
            return 'hidden or system file'
        try:
            if entry.is_dir():
                return self._follow(entry.path) if entry.is_symlink() else '/'
            if entry.is_file():
                return self._kind_of_file(entry)
        except PermissionError:
            return 'unreadable file'
        except OSError:  # such as a link to itself
            return 'dangling link'
        return 'dangling link' if entry.is_symlink() else 'special file'

    def _kind_of_file(self, entry: 'os.DirEntry[str]') -> str:
        ending = suffix_of(entry.name)
        is_image = entry.name.lower().endswith(self._extensions)
        # Other files, too, have the suffix of Siemens' DICOM files.
        kind = ending if re.fullmatch(
            r'(\.[a-z]\w{0,9}){1,2}', ending) else 'other file'
        if not is_image and kind not in ('other file', '.ima'):
            return kind
        if ending == '.npz' and _holds_features(entry.path):
            return 'feature file'
        if ending in _PLUGIN_OF:
            from .decode.raster import has_plugin
            return '' if has_plugin(_PLUGIN_OF[ending]) else ending
        if ending in _DICOM or not is_image and '.dcm' in self._extensions:
            with open(entry.path, 'rb') as file:
                head = file.read(1024)
            if _NO_PIXELS.search(head, 128):
                return 'imageless DICOM object'
            is_image = is_image or head[128:132] == b'DICM'
        return '' if is_image else kind

    def _follow(self, path: str) -> str:
        """Return '/' to follow a link to a folder, else the reason to skip."""
        target = os.path.realpath(path)
        above = os.path.realpath(os.path.dirname(path))
        if _is_below(above, target) or _is_below(self._real_root, target):
            return 'circular link'
        # Outside of the root it starts with two dots, like a hidden name.
        own_name = os.path.relpath(target, self._real_root).split(os.sep)
        if target in self._followed or not any(map(is_hidden, own_name)):
            return 'repeated folder'
        self._followed.add(target)
        return '/'


def _holds_features(path: str) -> bool:
    """Return whether a file is the output of ``cmae embed``."""
    try:
        with zipfile.ZipFile(path) as file:
            return {'features.npy', 'paths.npy'} <= {*file.namelist()}
    except zipfile.BadZipFile:
        return False  # a damaged image, which decoding reports


def _find_bands(names: Sequence[str]) -> set[str]:
    """Find files in a folder that contain one band of a scene each."""
    scenes: dict[str, dict[str, set[str]]] = {}
    for name in names:
        match = _BAND.fullmatch(name)
        if match and (match[4].lower() == 'jp2' or _SCENE_NAME.search(name)):
            scenes.setdefault(match[1], {}).setdefault(
                match[2].upper(), set()).add(name)
    return {name for bands in scenes.values() if len(bands) > 1
            for files in bands.values() for name in files}


def _is_below(path: str, folder: str) -> bool:
    return os.path.join(path, '').startswith(os.path.join(folder, ''))


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``range(count)``, evenly spaced."""
    spaced = np.linspace(0, count - 1, min(count, most))
    return np.unique(spaced.round().astype(int)).tolist()


class ImageList(NamedTuple):
    """Content of a list file.

    Args:
        names (FileNames): Paths as written in the list.
        lines (Sequence[int]): Line number of each path, from 1.
        labels (list[str] | None): Text of each label, '' for none.
        split (str): Split of these rows, '' for all.
        note (str): Skipped rows.
    """

    names: FileNames
    lines: Sequence[int]
    labels: list[str] | None = None
    split: str = ''
    note: str = ''


def read_list(path: str, root: str, splits: Sequence[str] = (),
              several: bool = False) -> ImageList:
    """Read a list file.

    A tab or the last space separates a path and its label. Paths may be
    encoded by :func:`~cmae_mm.datasets.names.encode_name`. Comments are not
    supported; empty lines are skipped. A list of paths without labels is
    memory-mapped.

    Args:
        path (str): The file.
        root (str): Folder of relative paths.
        splits (Sequence[str]): The first split in this list that occurs in the
            CSV file is read. Defaults to all rows.
        several (bool): Whether an image may have several labels, separated by
            ``|`` or ``;``, or none. A CSV file may have a column of 0 and 1
            for each class instead. Defaults to False.

    Returns:
        ImageList: Its content.

    Raises:
        SourceError: If it has no images, or a line is invalid; the message has
            its number.
    """
    data: np.ndarray = np.zeros(0, np.uint8)
    if os.path.getsize(path):
        data = np.memmap(path, np.uint8, 'r')
    if bytes(data[:2]) in (b'\xff\xfe', b'\xfe\xff'):  # PowerShell's UTF-16
        text = data.tobytes().decode('utf-16', 'replace')
        data = np.frombuffer(text.encode(), np.uint8)
    data = data[3:] if bytes(data[:3]) == b'\xef\xbb\xbf' else data
    if b'\0' in bytes(data[:1000]):
        raise SourceError(f'{path} is not a list: it is not a text file')
    lines = FileNames.of_lines(data, _strip)
    header = next(filter(None, lines), '')
    delimiter = next((d for d in ',;\t' if {*map(_normal, header.split(d))}
                      & {*_COLUMNS['path']}), '')
    if not header:
        raise SourceError(f'{path} lists no images')
    if delimiter:
        return _read_rows(path, _csv_rows(path, data, delimiter), splits,
                          several)
    if path.lower().endswith(('.csv', '.tsv')):
        raise SourceError(
            f'{path}: the first line must contain the column names, including '
            f'one of {", ".join(_COLUMNS["path"][:5])}, but is '
            f'{header[:80]!r}')
    if _has_label(header, root):
        return _read_rows(path, _labelled_rows(lines, several), (), several)
    names = FileNames.of_lines(data, _decode)
    # Empty lines start with their end or with white space.
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
    """Yield the rows of a CSV file, each with the number of its first line."""
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


def _labelled_rows(lines: FileNames, several: bool) -> Rows:
    """Yield paths and labels as rows of a table with a header."""
    yield 0, ['path', 'label']
    for number, line in enumerate(lines, 1):
        if line:
            is_path = line.lower().endswith(IMG_EXTENSIONS)
            yield number, [line] + [''] * several if is_path else [
                *split_line(line)]


def _read_rows(path: str, rows: Rows, splits: Sequence[str],
               several: bool = False) -> ImageList:
    """Read the rows of a table; the first one has the column names."""
    header = next(rows)[1]
    columns = [_normal(cell) for cell in header]
    places = [next((columns.index(name) for name in known if name in columns),
                   None) for known in _COLUMNS.values()]
    found: list[tuple[int, str, str, str]] = []
    note = ''
    if several and places[1] is None:
        rows, note = _join_columns(path, header, places, rows)
        columns.append('label')
        places[1] = len(columns) - 1
    for line, row in rows:
        cells = ['' if place is None else _strip(row[place])
                 for place in places] if len(row) == len(columns) else []
        if not cells or not cells[0]:
            raise SourceError(
                f'{path}, line {line}: expected {len(columns)} columns with a '
                f'path{" and a label" if places[1] is not None else ""}, but '
                f'the line is {encode_name(",".join(row))[:80]}')
        found.append((line, decode_name(cells[0]), cells[1], cells[2]))
    has = {row[3].lower() for row in found}
    split = next((s for s in splits if s.lower() in has), '')
    if splits and places[2] is not None:
        found = [row for row in found if row[3].lower() == split.lower()]
    if not has:
        raise SourceError(f'{path} has no rows')
    if not found:
        raise MissingSplit(
            f'{path} has no rows of the split '
            f'{" or ".join(dict.fromkeys(map(str.lower, splits)))}, but of '
            f'{", ".join(sorted(has))}')
    return ImageList(
        FileNames.of([[row[1] for row in found]]),
        [row[0] for row in found],
        None if places[1] is None else [row[2] for row in found], split, note)


def _join_columns(path: str, header: Sequence[str],
                  places: Sequence[int | None],
                  rows: Rows) -> tuple[Rows, str]:
    """Append the names of the columns with a 1 to each row."""
    table = list(rows)
    chosen, others = {}, []
    for place, name in enumerate(header):
        if place in places:
            continue
        cells = {_strip(row[place]).lower(): line
                 for line, row in table[::-1] if len(row) > place}
        wrong = {*cells} - {*_ONE, *_ZERO}
        if wrong <= {*_MISSING} and {*cells} & {*_ONE}:
            for cell in wrong:
                raise SourceError(
                    f'{path}, line {cells[cell]}: the column {_strip(name)!r} '
                    f'has {cell!r}; expected 0 or 1')
            chosen[place] = _strip(name)
        else:
            others.append(encode_name(_strip(name)))
    if not chosen:
        raise SourceError(
            f'{path} has neither a column label nor columns of 0 and 1, but '
            f'{", ".join(others) or "paths only"}')
    joined = ((line, [*row, '|'.join(
        name for place, name in chosen.items()
        if len(row) > place and _strip(row[place]).lower() in _ONE)])
        for line, row in table)
    return joined, '' if not others else (
        f'columns that are not 0 and 1: {", ".join(others)}')


def split_labels(text: str) -> list[str]:
    """Split several labels at ``|`` and ``;``."""
    return list(dict.fromkeys(filter(None, map(str.strip, re.split(
        r'[|;]', text)))))


def split_line(line: str) -> tuple[str, str]:
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
    """Return whether a line has a path and a label."""
    name, label = map(decode_name, split_line(line))
    if not label or os.path.isfile(os.path.join(root, decode_name(line))):
        return False
    return os.path.isfile(os.path.join(root, name)) or (
        name.lower().endswith(IMG_EXTENSIONS)
        and not line.lower().endswith(IMG_EXTENSIONS))


def check_files(path: str, root: str, found: ImageList,
                allow_missing: bool = False) -> str:
    """Check that the files of a list exist.

    Args:
        path (str): The list.
        root (str): Folder of relative paths.
        found (ImageList): Its content.
        allow_missing (bool): Whether some of the files may be missing.
            Defaults to False.

    Returns:
        str: A note if only some were checked, else ''.

    Raises:
        SourceError: If one does not exist or is not a regular file; the
            message has its line number.
    """
    count = len(found.names)
    chosen = evenly_spaced(count, _MOST_CHECKED)
    faults = [index for index in chosen
              if _find_fault(os.path.join(root, found.names[index]))]
    if not faults or allow_missing and len(faults) < len(chosen):
        return '' if len(chosen) == count else (
            f'{len(chosen):,} of the files were checked')
    name = found.names[faults[0]]
    hint = f'paths are relative to {root}'
    if len(faults) == len(chosen):
        hint += ', and each line has a path, or a path and a label'
    for mark, advice in _HINTS.items():
        if re.match(mark, name):
            hint = advice
    if '\\' in name:
        hint = 'write / in place of \\ in paths, and no drive'
    elif found.labels is None and _has_label(name, root):
        hint = 'it has a label, but the first line has none'
    raise SourceError(
        f'{path}, line {found.lines[faults[0]]}: {encode_name(name)} '
        f'{_find_fault(os.path.join(root, name))} ({len(faults):,} of '
        f'{len(chosen):,} lines are wrong); {hint}')


def _find_fault(path: str) -> str:
    """Return the reason why a path is not a regular file, or ''."""
    try:
        return describe_kind(os.stat(path).st_mode)
    except FileNotFoundError:
        return 'is a dangling link' if os.path.islink(path) else (
            'does not exist')
    except (OSError, ValueError) as error:
        return f'cannot be reached ({getattr(error, "strerror", error)})'


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort class names, integers by value."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def parse_labels(labels: Sequence[str], place: Callable[[int], str],
                 several: bool = False) -> tuple[Any, Any]:
    """Convert labels in text to numbers.

    Args:
        labels (Sequence[str]): N labels: integers, or names of classes.
        place (Callable[[int], str]): Returns the position of the n-th label,
            for errors.
        several (bool): Whether images have several labels, see
            :func:`read_list`. Defaults to False.

    Returns:
        tuple: Labels, int64, (N, ), and the sorted names of the K classes, or
        None if labels are integers; numbers such as 01 are names. With
        several labels, a matrix of images and classes, bool, (N, K).

    Raises:
        SourceError: If numbers and names are mixed.
    """
    if several:
        sets = [split_labels(text) for text in labels]
        classes = sort_classes({name for one in sets for name in one})
        number = {name: i for i, name in enumerate(classes)}
        matrix = np.zeros((len(sets), len(classes)), bool)
        for row, one in enumerate(sets):
            matrix[row, [number[name] for name in one]] = True
        return matrix, classes
    is_padded = any(re.fullmatch(r'0\d+', text) for text in labels)
    numeric = [bool(re.fullmatch(r'\d{1,18}(\.0+)?', text)) and not is_padded
               for text in labels]
    for index, text in enumerate(labels):
        if not text.isdigit() and not numeric[index] and re.fullmatch(
                r'[-+]?\d*\.?\d+', text):
            raise SourceError(
                f'{place(index)}: the label {text!r} is neither a whole '
                'number from 0 nor a name')
    if len(set(numeric)) > 1:
        index = numeric.index(not numeric[0])
        raise SourceError(
            f'{place(index)}: the label {labels[index]!r} is '
            f'{"" if numeric[index] else "not "}a whole number from 0, unlike '
            f'{labels[0]!r} before it')
    if numeric[0]:
        return np.array([int(text.split('.')[0]) for text in labels],
                        np.int64), None
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), names.tolist()
