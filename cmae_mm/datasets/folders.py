"""The images below a folder, in a fixed order, and what is left out."""
import os
import re
from collections import Counter
from typing import Dict, Iterable, Iterator, List, Sequence, Set

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


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden or belongs to the system."""
    return name.startswith('.') or name.lower() in _SYSTEM_NAMES


class LeftOut:
    """Counts of what is left out: each kind, with the first example."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self._examples: Dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a file or folder of a kind: an ending, or a singular noun."""
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
        return f'left out: {", ".join(parts)}' if parts else ''


class FolderListing:
    """The images below a folder, sorted by their names.

    Links to files and folders are followed. A link to a folder that is listed
    anyway, by its own path below the root or through an earlier link, or that
    leads back to a folder above it, is left out. Only regular files are
    listed.

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
        self._followed: Set[str] = {self._real_root}

    def remote(self, names: Iterable[str]) -> List[str]:
        """Choose the images among the names of all files of a remote root."""
        images = sorted(filter(self._is_image, names))
        self.folders = [n.split('/')[0] for n in images if '/' in n]
        return images

    def groups(self) -> Iterator[List[str]]:
        """List a local folder.

        Yields:
            List[str]: Names of images in one folder, relative to the root.

        Raises:
            OSError: If the root itself cannot be read.
        """
        first = self._entries('')
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
                stack.append(iter(self._entries(name)))
            else:
                stack.pop()

    def _entries(self, folder: str) -> List[str]:
        """List a folder's images, and its folders with a slash at the end."""
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
            kind = self._kind(entry, name)
            if kind in ('', '/'):
                names.append(name + kind)
            elif kind != '.':
                self.left_out.add(kind, name)
        return sorted(names)

    def _kind(self, entry: 'os.DirEntry[str]', name: str) -> str:
        """Tell '' for an image, '/' for a folder, else why it is left out."""
        try:
            if entry.is_dir() and not is_hidden(entry.name):
                return self._follow(entry.path) if entry.is_symlink() else '/'
            if is_hidden(entry.name) or entry.is_file():
                return '' if self._is_image(name) else '.'
        except PermissionError:
            return 'unreadable file'
        except OSError:  # such as a link to itself
            return 'dangling link'
        return 'dangling link' if entry.is_symlink() else 'special file'

    def _is_image(self, name: str) -> bool:
        """Tell an image by its name; count what is none."""
        *folders, last = name.split('/')
        ending = os.path.splitext(last)[1].lower()
        if is_hidden(last) or any(map(is_hidden, folders)):
            self.left_out.add('hidden or system file', name)
        elif last.lower().endswith(self._extensions):
            return True
        elif re.fullmatch(r'\.[a-z]\w{0,9}', ending):
            self.left_out.add(ending, name)
        else:
            self.left_out.add('other file', name)
        return False

    def _follow(self, path: str) -> str:
        """Tell '/' if a link to a folder is to be followed, else why not."""
        target = os.path.realpath(path)
        above = os.path.realpath(os.path.dirname(path))
        if _is_below(above, target) or _is_below(self._real_root, target):
            return 'circular link'
        # Outside of the root it begins with two dots, as if it were hidden.
        own_name = os.path.relpath(target, self._real_root).split(os.sep)
        if target in self._followed or not any(map(is_hidden, own_name)):
            return 'repeated folder'
        self._followed.add(target)
        return '/'


def _is_below(path: str, folder: str) -> bool:
    return os.path.join(path, '').startswith(os.path.join(folder, ''))
