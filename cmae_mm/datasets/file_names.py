"""Millions of file names in little memory.

A Python list of dicts takes about 400 bytes a name, in every process that
touches it. Here all names are one array of bytes beside one of places, which
forked workers share; those of a text file stay in the file.
"""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Union

import numpy as np
from mmengine import fileio


class FileNames(Sequence):
    """Names, as strings when they are asked for.

    Args:
        data (np.ndarray): All names, uint8, one after the other.
        ends (np.ndarray): Where each ends in the data, int64, (N, ).
        gap (int): Number of bytes between two names. Defaults to 0.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray,
                 gap: int = 0) -> None:
        self._data = data
        self._ends = ends
        self._gap = gap

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        end = int(self._ends[index])
        start = int(self._ends[index - 1]) + self._gap if index else 0
        return os.fsdecode(self._data[start:end].tobytes())

    @property
    def nbytes(self) -> int:
        """Number of bytes in memory or in the file."""
        return self._data.nbytes + self._ends.nbytes

    @classmethod
    def of(cls, groups: Iterator[List[str]]) -> 'FileNames':
        """Keep names that come in groups.

        Args:
            groups (Iterator[List[str]]): The names.

        Returns:
            FileNames: All of them.
        """
        data, done = bytearray(), 0
        ends: List[np.ndarray] = [np.empty(0, np.int64)]
        for group in groups:
            encoded = [os.fsencode(name) for name in group]
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
            ends.append(done + lengths.cumsum())
            data += b''.join(encoded)
            done = len(data)
        return cls(np.frombuffer(data, np.uint8), np.concatenate(ends))

    @classmethod
    def of_lines(cls, path: Union[str, Path]) -> 'FileNames':
        """Read the lines of a text file; empty ones are left out.

        A local file is not read into memory but mapped: all processes of a
        machine share it.

        Args:
            path (str | Path): The file, local or one that mmengine's
                ``fileio`` reads.

        Returns:
            FileNames: The lines.
        """
        if os.path.isfile(path) and os.path.getsize(path):
            data: np.ndarray = np.memmap(path, np.uint8, 'r')
        else:
            data = np.frombuffer(fileio.get(path), np.uint8)
        breaks = np.flatnonzero(data == ord('\n'))
        if len(data) and data[-1] != ord('\n'):
            breaks = np.append(breaks, len(data))
        starts = np.append(-1, breaks[:-1]) + 1
        # What other systems end their lines with, and empty lines.
        if (breaks == starts).any() or (
                data[breaks[breaks > starts] - 1] == ord('\r')).any():
            lines = data.tobytes().decode(
                'utf-8', 'surrogateescape').splitlines()
            return cls.of(iter([[line for line in lines if line.strip()]]))
        return cls(data, breaks, gap=1)


def list_files(folder: str,
               wanted: Callable[[str], bool],
               inside: str = '') -> Iterator[List[str]]:
    """List files below a local folder, in the order of their sorted paths.

    Holds the names of one folder at a time. As mmengine lists them: links are
    followed, and files whose names begin with a dot are left out.

    Args:
        folder (str): The folder.
        wanted (Callable): Tells by its name whether a file is wanted.
        inside (str): What precedes the paths. Defaults to ''.

    Yields:
        List[str]: Paths relative to the first folder, in groups.
    """
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            name = entry.name
            if not name.startswith('.') and entry.is_file():
                if wanted(name):
                    entries.append(name)
            elif entry.is_dir():
                # as it stands in the paths, which are what is sorted
                entries.append(f'{name}/')
    entries.sort()
    group: List[str] = []
    for name in entries:
        if not name.endswith('/'):
            group.append(inside + name)
            continue
        if group:
            yield group
            group = []
        yield from list_files(
            os.path.join(folder, name[:-1]), wanted, inside + name)
    if group:
        yield group


class ImageRecords(Sequence):
    """A data set's list of samples, each made when it is asked for.

    Args:
        names (FileNames): Names of the images.
        path_of (Callable): Gives the path for a name.
        key_of (Callable, optional): Gives the ``img_key`` of the n-th image.
            Defaults to None, there are no keys.
    """

    def __init__(self,
                 names: FileNames,
                 path_of: Callable[[str], str] = str,
                 key_of: Optional[Callable[[int], str]] = None) -> None:
        self.names = names
        self.path_of = path_of
        self.key_of = key_of

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = dict(img_path=self.path_of(self.names[index]))
        if self.key_of is not None:
            record['img_key'] = self.key_of(int(index))
        return record
