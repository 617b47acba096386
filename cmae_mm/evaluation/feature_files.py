"""Feature files, written in parts and joined at the end."""
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.names import decode_name, encode_name
from ..files import atomic_file, atomic_path, write_file
from .features import Part, describe_none, storable, warn_if_equal


class FeatureFileError(ValueError):
    """A feature file cannot be written; the message has the reason."""


class FeatureFile:
    """A feature file written in parts, which continues after an interruption.

    Parts are stored in the folder ``<file>.parts`` until the file is complete.
    Each part is an ``.npz`` file with the settings; its checksums are verified
    when it is read.

    Args:
        path (Path): The file, ``.npz`` or ``.parquet``.
        settings (dict[str, Any]): Settings of the features, as plain values. A
            file with other settings raises an error.
        names (Sequence[str]): Names of all images, in order.

    Raises:
        FeatureFileError: If the file or its parts have other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any],
                 names: Sequence[str]) -> None:
        self.path = path
        self.folder = path.with_name(f'{path.name}.parts')
        self.settings = settings
        self.names = names
        self.is_whole = path.exists()
        if self.is_whole:
            self._compare(_read_settings(path), 'was written', path)

    def _compare(self, found: dict[str, Any] | None, what: str,
                 obstacle: Path) -> None:
        if found is None:
            raise FeatureFileError(
                f'{self.path} exists and is not a feature file, or is '
                'damaged; choose another file')
        changed = [
            'other image files' if key == 'files' else
            f'{key} {found.get(key)!r} instead of {self.settings.get(key)!r}'
            for key in {**self.settings, **found}
            if found.get(key) != self.settings.get(key)]
        if changed:
            raise FeatureFileError(
                f'{self.path} {what} with {", ".join(changed)}; choose '
                f'another file, or delete {obstacle} to start again')

    def missing(self) -> list[tuple[int, int]]:
        """Find images without features; remove damaged parts.

        Returns:
            list[tuple[int, int]]: Ranges of images.

        Raises:
            FeatureFileError: If the parts have other settings.
        """
        ranges, done = [], 0
        for path in self._paths():
            part = self._read(path)
            if part is None or part.start < done:
                print(f'{path} is damaged; its images are computed again',
                      flush=True)
                path.unlink()
                continue
            if part.start > done:
                ranges.append((done, part.start))
            done = part.stop
        if done < len(self.names):
            ranges.append((done, len(self.names)))
        return ranges

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob('part_*.npz'))

    def _read(self, path: Path) -> Part | None:
        """Read a part; None if it is damaged or does not match its name."""
        try:
            _, start, stop = path.stem.split('_')
            with np.load(path) as file:
                settings = json.loads(str(file['settings']))
                part = Part(
                    int(start), int(stop), file['paths'].tolist(),
                    file['features'], dict(zip(file['skipped'].tolist(),
                                               file['reasons'].tolist())))
        # Damaged files raise errors of zip, numpy, JSON and zlib.
        except Exception:
            return None
        self._compare(settings, 'was begun', self.folder)
        read = [name for name in self._stored(part.start, part.stop)
                if name not in part.skipped]
        whole = part.paths == read and len(part.features) == len(read) and (
            part.stop <= len(self.names))
        return part if whole else None

    def _stored(self, start: int, stop: int) -> list[str]:
        return [storable(name) for name in self.names[start:stop]]

    def add(self, part: Part) -> None:
        """Write a part atomically."""
        path = self.folder / f'part_{part.start:010d}_{part.stop:010d}.npz'
        with atomic_file(path) as file:
            np.savez(file, features=part.features, **self._texts(part))

    def _texts(self, part: Part) -> dict[str, Any]:
        return dict(
            paths=np.array(part.paths, dtype=str),
            skipped=np.array(list(part.skipped), dtype=str),
            reasons=np.array(list(part.skipped.values()), dtype=str),
            settings=np.array(json.dumps(self.settings)))

    def parts(self) -> Iterator[Part]:
        """Read the parts, one at a time.

        Raises:
            FeatureFileError: If one is damaged or missing.
        """
        done = 0
        for path in self._paths():
            part = self._read(path)
            if part is None or part.start != done:
                break
            done = part.stop
            yield part
        if done != len(self.names):
            raise FeatureFileError(f'a part in {self.folder} is damaged; run '
                                   'the same command again')

    def finish(self) -> tuple[list[str], tuple[int, ...], dict[str, str]]:
        """Join the parts to the file, and remove them.

        Returns:
            tuple: Paths, the shape of all features, and skipped images.

        Raises:
            FeatureFileError: If no image could be read, or a part is damaged.
        """
        paths: list[str] = []
        skipped: dict[str, str] = {}
        shape: tuple[int, ...] = ()
        ends: list[np.ndarray] = []
        for part in self.parts():
            paths += part.paths
            skipped.update(part.skipped)
            if part.paths:
                shape = part.features.shape[1:]
                both = [*ends, *part.features]
                ends = [np.min(both, axis=0), np.max(both, axis=0)]
        if not paths:
            raise FeatureFileError(describe_none(skipped))
        warn_if_equal(np.stack(ends if len(paths) > 1 else ends[:1]))
        shape = (len(paths), *shape)
        lines = ''.join(f'{encode_name(name)}\t{reason}\n'
                        for name, reason in skipped.items())
        listed = self.path.with_name(f'{self.path.name}.skipped.txt')
        if skipped:
            write_file(listed, lines)
        else:
            listed.unlink(missing_ok=True)
        with atomic_path(self.path) as target:
            if self.path.suffix.lower() == '.npz':
                self._write_npz(target, Part(0, 0, paths, None, skipped),
                                shape)
            else:
                self._write_parquet(target, skipped, shape)
        shutil.rmtree(self.folder)
        return paths, shape, skipped

    def _write_npz(self, target: Path, whole: Part,
                   shape: tuple[int, ...]) -> None:
        """Write an ``.npz`` file with one part in memory at a time."""
        header = dict(
            descr=np.lib.format.dtype_to_descr(
                np.dtype(self.settings['dtype'])),
            fortran_order=False,
            shape=shape)
        with zipfile.ZipFile(target, 'w', allowZip64=True) as archive:
            for name, array in self._texts(whole).items():
                with archive.open(f'{name}.npy', 'w') as member:
                    np.lib.format.write_array(member, array,
                                              allow_pickle=False)
            with archive.open('features.npy', 'w',
                              force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in self.parts():
                    member.write(part.features.tobytes())

    def _write_parquet(self, target: Path, skipped: dict[str, str],
                       shape: tuple[int, ...]) -> None:
        """Write columns ``path`` and ``feature``, one row group per part.

        Names are encoded. Patch tokens are flattened row by row; the metadata
        of the file contain the shape.
        """
        import pyarrow  # extra='embed'
        import pyarrow.parquet as parquet
        width = int(np.prod(shape[1:]))
        kind = dict(float32=pyarrow.float32(),
                    float16=pyarrow.float16())[self.settings['dtype']]
        meta = dict(settings=self.settings, shape=shape, skipped={
            encode_name(name): reason for name, reason in skipped.items()})
        schema = pyarrow.schema(
            [('path', pyarrow.string()),
             ('feature', pyarrow.list_(kind, width))],
            metadata=dict(cmae_mm=json.dumps(meta)))
        with parquet.ParquetWriter(str(target), schema) as writer:
            for part in self.parts():
                if not part.paths:
                    continue
                flat = pyarrow.array(part.features.reshape(-1), type=kind)
                features = pyarrow.FixedSizeListArray.from_arrays(flat, width)
                names = pyarrow.array([encode_name(p) for p in part.paths])
                writer.write_table(
                    pyarrow.table([names, features], schema=schema))


def read_whole(path: Path) -> tuple[list[str], tuple[int, ...],
                                    dict[str, str]]:
    """Read paths, shape and skipped images of a complete file."""
    if path.suffix.lower() == '.npz':
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
    paths = parquet.read_table(path, columns=['path'])['path'].to_pylist()
    return ([decode_name(p) for p in paths], tuple(meta['shape']), {
        decode_name(name): why for name, why in meta['skipped'].items()})


def _read_settings(path: Path) -> dict[str, Any] | None:
    """Read the settings of a complete file."""
    try:
        if path.suffix.lower() == '.npz':
            with np.load(path) as whole:
                return json.loads(str(whole['settings']))
        import pyarrow.parquet as parquet
        meta = parquet.read_schema(path).metadata or {}
        return json.loads(meta[b'cmae_mm'])['settings']
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
