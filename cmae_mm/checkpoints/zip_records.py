"""The records of torch's zip files, each verified as it is read."""
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import Any, BinaryIO, Iterator

import torch

from .errors import CheckpointError

# Few system calls, and what is copied is still in the processor's cache.
_CHUNK = 1 << 20


@contextmanager
def damaged_if_unreadable(name: str) -> Iterator[None]:
    """Say of any error that reading a broken file makes that it is broken.

    Args:
        name (str): Name of the file, for the error.

    Raises:
        CheckpointError: Instead of the errors of readers.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, EOFError,
            IndexError, KeyError, MemoryError, NotImplementedError, OSError,
            OverflowError, RecursionError, RuntimeError, TypeError, ValueError,
            struct.error, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(
            error).__name__
        raise CheckpointError(f'{name} is damaged: {reason}') from error


class ZipRecords:
    """The records of a file that ``torch.save`` wrote.

    Python's ``zipfile`` compares each record with its CRC-32, which torch
    writes and its own reader does not look at: one wrong bit is found.

    Args:
        file (BinaryIO): The opened file.
        name (str): Name of the file, for errors.

    Raises:
        CheckpointError: If it is damaged, or no such file.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file: Any = file  # BinaryIO lacks readinto
        with damaged_if_unreadable(name):
            self._archive = zipfile.ZipFile(file)
            infos = self._archive.infolist()
        self._infos = {info.filename: info for info in infos}
        roots = [n.removesuffix('data.pkl') for n in self._infos
                 if n.count('/') == 1 and n.endswith('/data.pkl')]
        if len(roots) != 1:
            raise CheckpointError(
                f'{name} is a zip file, but none that torch.save wrote')
        self._root = roots[0]
        if f'{self._root}constants.pkl' in self._infos:
            raise CheckpointError(
                f'{name} is a TorchScript file, which holds a program; save '
                'its state_dict() instead')
        # The latter bounds what a small file can make of itself.
        if len(self._infos) != len(infos) or any(
                i.compress_type != zipfile.ZIP_STORED
                or i.compress_size != i.file_size for i in infos):
            raise CheckpointError(
                f'{name} is damaged: records are there twice, or compressed, '
                'as torch.save never writes them')

    def __contains__(self, record: str) -> bool:
        return self._root + record in self._infos

    def read(self, record: str) -> bytes:
        """Read and verify a whole record.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        with damaged_if_unreadable(self.name):
            return self._archive.read(self._info(record))

    def read_tensor(self, record: str) -> torch.Tensor:
        """Read and verify a record as bytes, (N, ) uint8.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        info = self._info(record)
        tensor = torch.empty(info.file_size, dtype=torch.uint8)
        view, checksum = memoryview(tensor.numpy()), 0
        with damaged_if_unreadable(self.name):
            with self._archive.open(info):
                pass  # compares the record's own header with the directory
            # Read in place: zipfile itself would copy once more.
            self._file.seek(info.header_offset + 26)
            self._file.seek(sum(struct.unpack('<HH', self._file.read(4))), 1)
            for start in range(0, len(view), _CHUNK):
                part = view[start:start + _CHUNK]
                if self._file.readinto(part) != len(part):
                    raise EOFError(f'{record} ends too early')
                checksum = zlib.crc32(part, checksum)
            if checksum != info.CRC:
                raise zipfile.BadZipFile(
                    f'the checksum of {record} is another')
        return tensor

    def verify(self) -> None:
        """Read all records and compare them with their checksums.

        Raises:
            CheckpointError: If one is damaged.
        """
        with damaged_if_unreadable(self.name):
            for info in self._infos.values():
                with self._archive.open(info) as opened:
                    while opened.read(_CHUNK):
                        pass

    def _info(self, record: str) -> zipfile.ZipInfo:
        info = self._infos.get(self._root + record)
        if info is None:
            raise CheckpointError(
                f'{self.name} is damaged: it lacks its record {record}')
        return info
