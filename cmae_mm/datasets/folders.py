"""The images below a folder, in a fixed order, and what is left out."""
import os
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, Dict, Iterator, List, Sequence, Set

from .names import encode_name

IMG_EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.ppm', '.bmp',
                  '.pgm', '.tif', '.tiff', '.webp', '.npy', '.dcm', '.dicom')
# Beside names that begin with a dot: what systems put into people's folders.
_SYSTEM_NAMES = {
    '__macosx', '__pycache__', '@eadir', '@tmp', '#recycle', '#snapshot',
    '@recycle', '@recently-snapshot', '~snapshot', '$recycle.bin', 'recycler',
    'system volume information', 'lost+found', 'thumbs.db', 'ehthumbs.db',
    'ehthumbs_vista.db', 'desktop.ini', 'icon\r', 'network trash folder',
    'temporary items'
}
_MOST_ENDINGS = 8


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden or belongs to the system."""
    return name.startswith('.') or name.lower() in _SYSTEM_NAMES


class LeftOut:
    """Counts of what a listing leaves out, each kind with an example."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.endings: Counter = Counter()
        self._examples: Dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a file or folder.

        Args:
            kind (str): A noun in the singular, such as 'dangling link'.
            name (str): Its name.
        """
        self.counts[kind] += 1
        self._examples.setdefault(kind, name)

    def add_ending(self, name: str) -> None:
        """Count a file whose ending is not one of an image."""
        ending = PurePosixPath(name).suffix.lower()
        if ending[1:].isdigit() or len(ending) > 16:
            ending = ''  # as in names made of numbers and dots
        self.endings[ending] += 1

    def __str__(self) -> str:
        shown = sorted(self.endings.items(), key=lambda item: (
            not item[0], -item[1], item[0]))[:_MOST_ENDINGS]
        parts = [f'{count:,} {encode_name(ending) or "without an ending"}'
                 for ending, count in shown]
        rest = sum(self.endings.values()) - sum(count for _, count in shown)
        if rest:
            parts.append(f'{rest:,} with other endings')
        for kind, count in self.counts.items():
            first = encode_name(self._examples[kind])
            parts.append(f'{count:,} {kind}{"s" if count > 1 else ""} '
                         f'({"first: " if count > 1 else ""}{first})')
        return ', '.join(parts)


class FolderListing:
    """The images below a local folder.

    Names are sorted as strings. Links to files and folders are followed. A
    folder is listed once: by its own path if it lies below the root, and
    otherwise by the first link to it, links in a folder before those in its
    folders. Only regular files are listed.

    Args:
        root (str): The folder.
        extensions (Sequence[str]): Endings of image files, in lower case.

    Attributes:
        left_out (LeftOut): What is left out, as far as the listing has come.
        folders (List[str]): Names of the root's folders.
    """

    def __init__(self, root: str, extensions: Sequence[str]) -> None:
        self.root = root
        self.left_out = LeftOut()
        self.folders: List[str] = []
        self._extensions = tuple(extensions)
        self._real_root = os.path.realpath(root)
        # Folders that are reached through links, by device and number.
        self._linked: Set[Any] = set()
        self._below_links: Set[str] = set()

    def groups(self) -> Iterator[List[str]]:
        """List the images.

        Yields:
            List[str]: Names of images in one folder, relative to the root.
        """
        first = self.entries('')
        self.folders = [n[:-1] for n in first if n.endswith('/')]
        stack = [iter(first)]
        group: List[str] = []
        while stack:
            name = next(stack[-1], '')
            if name and not name.endswith('/'):
                group.append(name)
                continue
            if group:
                yield group
                group = []
            if name:
                stack.append(iter(self.entries(name)))
            else:
                stack.pop()

    def entries(self, folder: str) -> List[str]:
        """List one folder.

        Args:
            folder (str): Its name relative to the root, with a slash at the
                end; '' for the root.

        Returns:
            List[str]: Sorted names of its images, and of its folders with a
            slash at the end.

        Raises:
            OSError: If the root itself cannot be read.
        """
        try:
            with os.scandir(os.path.join(self.root, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if not folder:
                raise
            self.left_out.add('unreadable folder', folder[:-1])
            return []
        names = []
        for entry in entries:
            name = folder + entry.name
            kind = self._kind(entry, name, folder)
            if kind in ('file', 'folder'):
                names.append(name + ('/' if kind == 'folder' else ''))
            elif kind == 'ending':
                self.left_out.add_ending(entry.name)
            else:
                self.left_out.add(kind, name)
        return sorted(names)

    def _kind(self, entry: 'os.DirEntry[str]', name: str, folder: str) -> str:
        """Tell what a folder's entry is, or why it is left out."""
        if is_hidden(entry.name):
            return 'hidden or system file'
        try:
            if entry.is_dir():
                return self._enter(entry, name, folder)
            if entry.is_file():
                known = entry.name.lower().endswith(self._extensions)
                return 'file' if known else 'ending'
        except PermissionError:
            return 'unreadable file'
        except OSError:  # of too many links, for example
            return 'dangling link'
        return 'dangling link' if entry.is_symlink() else 'special file'

    def _enter(self, entry: 'os.DirEntry[str]', name: str,
               folder: str) -> str:
        """Tell whether a folder is to be listed under this name."""
        is_link = entry.is_symlink()
        if not is_link and folder not in self._below_links:
            return 'folder'
        target = os.path.realpath(entry.path)
        if is_link and _is_below(os.path.dirname(entry.path), target):
            return 'circular link'
        status = entry.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._linked or self._has_own_name(target):
            return 'repeated folder'
        if status.st_ino:  # some file systems have no numbers
            self._linked.add(identity)
        self._below_links.add(f'{name}/')
        return 'folder'


    def _has_own_name(self, target: str) -> bool:
        """Tell whether a folder is listed by its path below the root."""
        if not _is_below(target, self._real_root):
            return False
        parts = os.path.relpath(target, self._real_root).split(os.sep)
        return parts == [os.curdir] or not any(map(is_hidden, parts))


def _is_below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or lies below it."""
    path = os.path.realpath(path)
    return os.path.commonpath([path, folder]) == folder


def list_remote(names: Iterator[str], extensions: Sequence[str],
                left_out: LeftOut) -> List[str]:
    """List the images among the files of a remote folder.

    Args:
        names (Iterator[str]): All files, relative to the folder.
        extensions (Sequence[str]): Endings of image files, in lower case.
        left_out (LeftOut): Takes what is left out.

    Returns:
        List[str]: The images, sorted.
    """
    images = []
    for name in names:
        if any(map(is_hidden, name.split('/'))):
            left_out.add('hidden or system file', name)
        elif name.lower().endswith(tuple(extensions)):
            images.append(name)
        else:
            left_out.add_ending(name)
    return sorted(images)
