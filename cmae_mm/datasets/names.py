"""Text encoding and compact storage of image names.

A Python list of strings needs about 100 bytes per name in each process. Here
all names are stored in one array of bytes and an array of their ends, which
forked workers share. Names in a text file are memory-mapped.
"""
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

# Line breaks of any kind, other control characters, bytes that are not
# UTF-8, and white space at either end.
_UNSAFE = re.compile(
    '[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]|^\\s|\\s$')


def encode_name(name: str) -> str:
    r"""Encode a name as one line of printable text.

    Ordinary names are unchanged. A name with line breaks, control characters,
    bytes that are not UTF-8, leading or trailing white space, or a leading
    quote becomes a JSON string: ``"line\nbreak.jpg"``. A byte XX that is not
    UTF-8 is written as ``\udcXX``.

    Args:
        name (str): A name, as ``os.fsdecode`` returns it.

    Returns:
        str: The encoded name. :func:`decode_name` inverts it.
    """
    if name.startswith('"') or _UNSAFE.search(name):
        return json.dumps(name)
    return name


def decode_name(text: str) -> str:
    """Decode a name, see :func:`encode_name`.

    Args:
        text (str): An encoded name, or a name that needs no encoding.

    Returns:
        str: The name.
    """
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:  # a name without encoding
            pass
    return text


def add_reason(name: str, reason: str) -> str:
    """Return the name of a file with the reason of a fault.

    Messages of the decoder contain the name, those of the system do not.

    Args:
        name (str): A name.
        reason (str): Reason why the file cannot be used.

    Returns:
        str: Both, the name once.
    """
    return reason if name in reason else f'{encode_name(name)}: {reason}'


class FileNames(Sequence):
    """A sequence of names in one array of bytes.

    Args:
        data (np.ndarray): All names, uint8, one after the other.
        ends (np.ndarray): End of each name in the data, int64, (N, ).
        gap (int): Number of bytes between two names. Defaults to 0.
        decode (Callable, optional): Converts text to a name. Defaults to
            None, the text is the name.
    """

    def __init__(self,
                 data: np.ndarray,
                 ends: np.ndarray,
                 gap: int = 0,
                 decode: Callable[[str], str] | None = None) -> None:
        self._data = data
        self.ends = ends
        self._gap = gap
        self._decode = decode

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        end = int(self.ends[index])
        start = int(self.ends[index - 1]) + self._gap if index else 0
        text = os.fsdecode(self._data[start:end].tobytes())
        return self._decode(text) if self._decode else text

    def checksum(self) -> int:
        """Return a checksum of all names and their order."""
        return zlib.crc32(
            np.ascontiguousarray(self._data).data,
            zlib.crc32(np.ascontiguousarray(self.ends).data))

    def select(self, indices: Sequence, skip: int = 0) -> 'FileNames':
        """Select some of the names.

        Args:
            indices (Sequence[int]): Their numbers.
            skip (int): Number of first characters to drop. Defaults to 0.

        Returns:
            FileNames: These names.
        """
        return FileNames.of(
            [self[i][skip:] for i in indices[start:start + 4096]]
            for start in range(0, len(indices), 4096))

    @property
    def nbytes(self) -> int:
        """Number of bytes in memory or in the file."""
        return self._data.nbytes + self.ends.nbytes

    @classmethod
    def of(cls, groups: Iterable[list[str]]) -> 'FileNames':
        """Collect groups of names.

        Args:
            groups (Iterable[list[str]]): The names.

        Returns:
            FileNames: All of them.
        """
        data, done = bytearray(), 0
        ends: list[np.ndarray] = [np.empty(0, np.int64)]
        for group in groups:
            encoded = [os.fsencode(name) for name in group]
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
            ends.append(done + lengths.cumsum())
            data += b''.join(encoded)
            done = len(data)
        return cls(np.frombuffer(data, np.uint8), np.concatenate(ends))

    @classmethod
    def of_lines(cls,
                 data: np.ndarray,
                 decode: Callable[[str], str] = decode_name) -> 'FileNames':
        r"""Read the lines of a text file, separated by ``\n``.

        Args:
            data (np.ndarray): The file, uint8, in memory or memory-mapped.
            decode (Callable): Converts a line to a name. Defaults to
                :func:`decode_name`.

        Returns:
            FileNames: The lines, empty ones too.
        """
        breaks = np.flatnonzero(data == ord('\n'))
        if len(data) and data[-1] != ord('\n'):
            breaks = np.append(breaks, len(data))
        return cls(data, breaks, gap=1, decode=decode)
