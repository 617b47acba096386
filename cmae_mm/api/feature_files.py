"""Files of features: written part by part, and joined when all are there."""
import io
import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from ..datasets.names import decode_name, encode_name
from ..files import atomic_path, remove_temporaries, write_file

_PLAN = 'settings.json'
_PART = re.compile(r'part_\d+_\d+\.npz')


class FeatureFileError(ValueError):
    """A file of features that cannot be written; the message says why."""


class Part(NamedTuple):
    """Features of images ``start`` to ``stop`` of a list.

    Args:
        start (int): Number of the first image.
        stop (int): Number after the last one.
        paths (List[str]): Images whose features are there.
        features (np.ndarray): (n, D), or (n, L, D) of patch tokens.
        skipped (Dict[str, str]): Images that could not be read, and why.
    """

    start: int
    stop: int
    paths: List[str]
    features: np.ndarray
    skipped: Dict[str, str]


class FeatureFile:
    """A file that is written in parts, and goes on where it was interrupted.

    Parts lie in the folder ``<file>.parts`` until the file is whole.

    Args:
        path (Path): The file, ``.npz`` or ``.parquet``.
        settings (Dict[str, Any]): What the features depend on, as plain
            values; a file that was begun or written with others is refused.

    Raises:
        FeatureFileError: If the file, or its parts, are of other settings.
    """

    def __init__(self, path: Path, settings: Dict[str, Any]) -> None:
        self.path = path
        self.folder = path.with_name(f'{path.name}.parts')
        self.settings = settings
        self.is_whole = path.exists()
        if self.is_whole:
            self._compare(_read_settings(path), 'was written', path)
        elif self.parts():
            self._compare(self._read_plan(), 'was begun', self.folder)

    def _read_plan(self) -> Dict[str, Any]:
        """Read the settings of the parts; without any they are of no use."""
        try:
            plan = json.loads((self.folder / _PLAN).read_text('utf-8'))
            if isinstance(plan, dict):
                return plan
        except (FileNotFoundError, ValueError):
            pass
        self._remove(self.parts(), f'{self.folder / _PLAN} is damaged')
        return self.settings

    def _compare(self, found: Optional[Dict[str, Any]], what: str,
                 obstacle: Path) -> None:
        if found is None:
            raise FeatureFileError(
                f'{self.path} exists and is no file of features; name '
                'another file')
        changed = [
            f'{key} {found.get(key)!r} instead of {value!r}'
            for key, value in self.settings.items() if found.get(key) != value
        ]
        if changed:
            raise FeatureFileError(
                f'{self.path} {what} with {", ".join(changed)}; name another '
                f'file, or delete {obstacle} to begin anew')

    def parts(self) -> List[Path]:
        """List the parts that are there, in order."""
        return sorted(path for path in self.folder.glob('part_*.npz')
                      if _PART.fullmatch(path.name))

    def count_done(self) -> int:
        """Count the images that the parts deal with, read or skipped.

        A part that is damaged or does not begin where the one before it ends
        is removed, and so are all after it: they are computed again.
        """
        done, parts = 0, self.parts()
        remove_temporaries(self.folder)
        for number, path in enumerate(parts):
            part = _read_part(path, self.settings['dtype'])
            if part is None or part.start != done:
                why = 'is damaged' if part is None else 'has none before it'
                self._remove(parts[number:], f'{path} {why}')
                break
            done = part.stop
        return done

    def _remove(self, parts: List[Path], reason: str) -> None:
        print(f'{reason}: {len(parts)} part(s) of {self.path} are computed '
              'again', flush=True)
        for path in parts:
            path.unlink()

    def add(self, part: Part) -> None:
        """Write a part, in full or not at all."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            paths=np.array(part.paths, dtype=str),
            features=part.features,
            skipped=np.array(list(part.skipped), dtype=str),
            reasons=np.array(list(part.skipped.values()), dtype=str))
        if not self.parts():
            plan = json.dumps(self.settings, indent=1)
            write_file(self.folder / _PLAN, plan.encode())
        name = f'part_{part.start:010d}_{part.stop:010d}.npz'
        write_file(self.folder / name, buffer.getvalue())

    def read_parts(self) -> Iterator[Part]:
        """Read the parts, one at a time."""
        done = 0
        for path in self.parts():
            part = _read_part(path, self.settings['dtype'])
            if part is None or part.start != done:
                raise FeatureFileError(
                    f'{path} was changed while {self.path} was written; the '
                    'same command computes it again')
            done = part.stop
            yield part

    def finish(self) -> Tuple[List[str], Tuple[int, ...], Dict[str, str]]:
        """Join the parts to the file, and remove them.

        Returns:
            tuple: The images, the shape of all features, and what was
            skipped.

        Raises:
            FeatureFileError: If no image could be read.
        """
        paths: List[str] = []
        skipped: Dict[str, str] = {}
        shape: Tuple[int, ...] = ()
        for part in self.read_parts():
            paths += part.paths
            skipped.update(part.skipped)
            if part.paths:
                shape = part.features.shape[1:]
        if not paths:
            raise FeatureFileError(describe_none(skipped))
        shape = (len(paths), *shape)
        write = _write_npz if self.path.suffix == '.npz' else _write_parquet
        if skipped:
            lines = ''.join(f'{encode_name(k)}\t{v}\n'
                            for k, v in skipped.items())
            write_file(
                self.path.with_name(f'{self.path.name}.skipped.txt'), lines)
        with atomic_path(self.path) as target:
            write(target, self, paths, shape, skipped)
        shutil.rmtree(self.folder)
        return paths, shape, skipped


def _read_part(path: Path, dtype: str) -> Optional[Part]:
    """Read a part; None if it is damaged."""
    start, stop = map(int, path.stem.split('_')[1:])
    try:
        with np.load(path) as part:
            paths, features, skipped, reasons = (
                part[name] for name in (
                    'paths', 'features', 'skipped', 'reasons'))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error,
            NotImplementedError):
        return None
    if len(paths) + len(skipped) != stop - start or len(features) != len(
            paths) or features.dtype != dtype:
        return None
    return Part(start, stop, paths.tolist(), features,
                dict(zip(skipped.tolist(), reasons.tolist())))


def describe_none(skipped: Dict[str, str]) -> str:
    """Say that no image could be read."""
    name, reason = next(iter(skipped.items()))
    return (f'none of the {len(skipped)} images could be read; the first, '
            f'{name}: {reason}')


def read_whole(path: Path) -> Tuple[List[str], Tuple[int, ...],
                                    Dict[str, str]]:
    """Read what a whole file holds beside the features themselves."""
    if path.suffix == '.npz':
        with np.load(path) as whole:
            paths = whole['paths'].tolist()
            skipped = dict(zip(whole['skipped'].tolist(),
                               whole['reasons'].tolist()))
            with whole.zip.open('features.npy') as member:
                np.lib.format.read_magic(member)
                shape = np.lib.format.read_array_header_1_0(member)[0]
        return paths, shape, skipped
    import pyarrow.parquet as parquet
    meta = json.loads(parquet.read_schema(path).metadata[b'cmae_mm'])
    names = parquet.read_table(path, columns=['path'])['path'].to_pylist()
    return list(map(decode_name, names)), tuple(meta['shape']), meta['skipped']


def _read_settings(path: Path) -> Optional[Dict[str, Any]]:
    """Read with which settings a whole file was written."""
    try:
        if path.suffix == '.npz':
            with np.load(path) as whole:
                return json.loads(str(whole['settings']))
        import pyarrow.parquet as parquet
        meta = parquet.read_schema(path).metadata or {}
        return json.loads(meta[b'cmae_mm'])['settings']
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write_npz(target: Path, file: FeatureFile, paths: List[str],
               shape: Tuple[int, ...], skipped: Dict[str, str]) -> None:
    """Write what ``np.load`` reads, a part in memory at a time."""
    small = dict(
        paths=np.array(paths, dtype=str),
        skipped=np.array(list(skipped), dtype=str),
        reasons=np.array(list(skipped.values()), dtype=str),
        settings=np.array(json.dumps(file.settings)))
    header = dict(
        descr=np.lib.format.dtype_to_descr(np.dtype(file.settings['dtype'])),
        fortran_order=False,
        shape=shape)
    with zipfile.ZipFile(target, 'w', allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(f'{name}.npy', 'w') as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open('features.npy', 'w', force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for part in file.read_parts():
                member.write(part.features.tobytes())


def _write_parquet(target: Path, file: FeatureFile, paths: List[str],
                   shape: Tuple[int, ...], skipped: Dict[str, str]) -> None:
    """Write columns ``path`` and ``feature``, a row group a part.

    Paths are encoded by ``encode_name``.

    Patch tokens are flattened, row by row; the file's metadata hold the shape.
    """
    import pyarrow
    import pyarrow.parquet as parquet
    width = int(np.prod(shape[1:]))
    kind = dict(float32=pyarrow.float32(),
                float16=pyarrow.float16())[file.settings['dtype']]
    meta = dict(settings=file.settings, shape=shape, skipped=skipped)
    schema = pyarrow.schema(
        [('path', pyarrow.string()),
         ('feature', pyarrow.list_(kind, width))],
        metadata=dict(cmae_mm=json.dumps(meta)))
    with parquet.ParquetWriter(str(target), schema) as writer:
        for part in file.read_parts():
            if not part.paths:
                continue
            names = pyarrow.array(list(map(encode_name, part.paths)))
            flat = pyarrow.array(part.features.reshape(-1), type=kind)
            features = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            writer.write_table(
                pyarrow.table([names, features],
                              schema=schema))
