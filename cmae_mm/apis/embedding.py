"""Features of any folder of images."""
import hashlib
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.device import get_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..datasets.names import encode_name
from ..datasets.source import (
    INDEX_FILE,
    STORE_FILE,
    ImageSource,
    ignore_interrupts,
    open_source,
)
from ..dependencies import cpu_count
from ..files import output_lock
from ..progress import Progress
from .checks import PathLike, check_embedding
from .encoder import load_encoder
from .feature_files import (
    FeatureFile,
    Part,
    describe_none,
    read_whole,
    storable,
)
from .pretrained_encoder import PretrainedEncoder

# A part is written at the latest after so many bytes, or seconds.
_PART_BYTES = 64 * 2**20
_PART_SECONDS = 30.


class Embeddings(NamedTuple):
    """Features of a folder's images.

    Args:
        paths (List[str]): The images, relative to the folder.
        features (np.ndarray | None): In their order, (N, D), or (N, L, D) of
            patch tokens; None where they were written to a file.
        shape (Tuple[int, ...]): Shape of all features.
        skipped (Dict[str, str]): Images that could not be read, and why.
        out (Path | None): The file, where one was written.
    """

    paths: List[str]
    features: Optional[np.ndarray]
    shape: Tuple[int, ...]
    skipped: Dict[str, str]
    out: Optional[Path] = None


class _Images(Dataset):
    """Images of a source, cropped; or why one cannot be read."""

    def __init__(self, source: ImageSource, encoder: PretrainedEncoder,
                 start: int, stop: int) -> None:
        self.source, self.encoder = source, encoder
        self.range = range(start, stop)

    def __len__(self) -> int:
        return len(self.range)

    def __getitem__(self, index: int) -> Tuple[str, Optional[Tensor], str]:
        number = self.range[index]
        name = storable(self.source.names[number])
        try:
            data = self.source.read(number)
            image = self.encoder.decode(data, encode_name(name))
            return name, self.encoder.crop(image), ''
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            text = ' '.join(str(error).replace('\0', '').split())
            return name, None, text or type(error).__name__


def embed(data: PathLike,
          checkpoint: PathLike,
          out: Optional[PathLike] = None,
          *,
          encoder: str = 'online',
          pool: str = 'mean',
          batch_size: int = 64,
          num_workers: Optional[int] = None,
          img_size: Optional[int] = None,
          dtype: str = 'float32',
          num_heads: Optional[int] = None,
          stats: Optional[PathLike] = None) -> Embeddings:
    """Compute features of all images below a folder; no labels are needed.

    Images are resized, cropped and normalised as in every evaluation, so that
    features are those of ``cmae knn``. Those that cannot be read are left out
    and listed. An accelerator is used where there is one.

    With ``out``, parts are written every half minute: interrupted and called
    again with the same arguments, it continues. ``np.load`` of an ``.npz``
    file gives ``paths``, ``features``, ``skipped``, ``reasons`` and
    ``settings``; a ``.parquet`` file has the columns ``path`` and
    ``feature``.

    Example::

        import cmae_mm
        paths, features, *_ = cmae_mm.embed('photos', 'epoch_300.pth')

    Args:
        data (str | PathLike): Folder of images, list, store or shards.
        checkpoint (str | PathLike): See :func:`load_encoder`.
        out (str | PathLike, optional): File to write, ``.npz`` or
            ``.parquet``. Defaults to None: features are returned alone.
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): 'mean' of the patch tokens, 'cls', the class token, or
            'patch', all patch tokens. Defaults to 'mean'.
        batch_size (int): Images at a time. Defaults to 64.
        num_workers (int, optional): Processes that read images. Defaults to
            one for each processor core, at most 8.
        img_size (int, optional): Side of the images in pixels. Defaults to
            the checkpoint's.
        dtype (str): 'float32' or 'float16', which features are kept in.
            Defaults to 'float32'.
        num_heads (int, optional): See :func:`load_encoder`.
        stats (str | PathLike, optional): See :func:`load_encoder`.

    Returns:
        Embeddings: Names and features.

    Raises:
        ArgumentError: If an argument is none of what is allowed.
        CheckpointError: If the checkpoint cannot be used.
        FeatureFileError: If ``out`` was begun or written with other
            arguments.
        ValueError: If there are no images, or none that can be read.
    """
    check_embedding(data, checkpoint, out, encoder, pool, batch_size,
                    num_workers, img_size, dtype, stats)
    source = open_source(data)
    print(source.describe(), flush=True)

    def compute(ranges: List[Tuple[int, int]], in_parts: bool
                ) -> Iterator[Part]:
        model = load_encoder(
            checkpoint, encoder, pool=pool, img_size=img_size,
            num_heads=num_heads, stats=stats).to(get_device())
        return _compute(model, source, ranges, batch_size, num_workers, dtype,
                        in_parts)

    if out is None:
        whole = next(compute([(0, len(source))], False))
        if not whole.paths:
            raise ValueError(describe_none(whole.skipped))
        return Embeddings(whole.paths, whole.features, whole.features.shape,
                          whole.skipped)
    path = Path(out).expanduser()
    with output_lock(path):
        file = FeatureFile(
            path, _settings(source, Path(checkpoint).expanduser(), encoder,
                            pool, img_size, num_heads, dtype, stats),
            source.names)
        if file.is_whole:
            found, shape, skipped = read_whole(path)
        else:
            ranges = file.missing()
            for part in compute(ranges, True) if ranges else ():
                file.add(part)
            found, shape, skipped = file.finish()
    return Embeddings(found, None, shape, skipped, path)


def _settings(source: ImageSource, checkpoint: Path, encoder: str,
              pool: str, img_size: Optional[int],
              num_heads: Optional[int], dtype: str,
              stats: Optional[PathLike]) -> Dict[str, Any]:
    """Give what features depend on, as plain values."""
    file = checkpoint
    if file.is_dir():
        file = file / 'model.safetensors'
    stat = file.stat()
    # A photograph that another has replaced has another feature.
    files = _fingerprint(source)
    more: Dict[str, Any] = {}
    if stats is not None:
        content = Path(stats).expanduser().read_bytes()
        more['stats'] = hashlib.sha256(content).hexdigest()[:16]
    return dict(
        more,
        data=source.place,
        images=len(source),
        files=files,
        checkpoint=os.path.abspath(checkpoint),
        checkpoint_bytes=stat.st_size,
        checkpoint_written=stat.st_mtime_ns,
        encoder=encoder,
        pool=pool,
        img_size=img_size,
        num_heads=num_heads,
        dtype=dtype)


def _fingerprint(source: ImageSource) -> str:
    """Hash the names of images, and sizes and times of their files."""
    made = hashlib.sha256()
    packed = dict(store=STORE_FILE, shards=INDEX_FILE).get(source.kind)
    if packed:
        made.update(_state(os.path.join(source.place, packed)))
    for index, name in enumerate(source.names):
        made.update(os.fsencode(name) + b'\0')
        if not packed:
            made.update(_state(source.path(index)))
    return made.hexdigest()[:16]


def _state(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError:  # of which reading the image tells more
        return b''
    return b'%d %d\0' % (found.st_size, found.st_mtime_ns)


def _compute(model: PretrainedEncoder, source: ImageSource,
             ranges: List[Tuple[int, int]], batch_size: int,
             num_workers: Optional[int], dtype: str,
             in_parts: bool) -> Iterator[Part]:
    """Yield the features of ranges of images in parts, or of each in one."""
    if num_workers is None:
        num_workers = min(8, cpu_count())
    left = sum(stop - start for start, stop in ranges)
    with Progress(len(source), 'features',
                  initial=len(source) - left) as progress:
        for start, stop in ranges:
            loader = DataLoader(
                _Images(source, model, start, stop),
                batch_size,
                num_workers=num_workers,
                worker_init_fn=ignore_interrupts,
                collate_fn=list)
            part, begun = _Collected(start, dtype), time.monotonic()
            for batch in loader:
                images = [image for _, image, _ in batch if image is not None]
                part.add(batch, _features(model, images, dtype) if images
                         else None)
                progress.update(len(batch))
                if in_parts and part.stop < stop and (
                        part.size >= _PART_BYTES
                        or time.monotonic() - begun >= _PART_SECONDS):
                    yield part.take()
                    part = _Collected(part.stop, dtype)
                    begun = time.monotonic()
            yield part.take()


class _Collected:
    """A part that grows by batches."""

    def __init__(self, start: int, dtype: str) -> None:
        self.start = self.stop = start
        self.size = 0
        self._names: List[str] = []
        self._features = [np.zeros((0, ), dtype)]
        self._skipped: Dict[str, str] = {}

    def add(self, batch: List[Tuple[str, Optional[Tensor], str]],
            features: Optional[np.ndarray]) -> None:
        """Add a batch, and the features of the images that were read."""
        self.stop += len(batch)
        for name, image, reason in batch:
            if image is None:
                self._skipped[name] = reason
            else:
                self._names.append(name)
        if features is not None:
            self.size += features.nbytes
            self._features.append(features)

    def take(self) -> Part:
        """Give the part."""
        features = self._features[1:] or self._features
        return Part(self.start, self.stop, self._names,
                    np.concatenate(features), self._skipped)


@torch.no_grad()
def _features(model: PretrainedEncoder, images: List[Tensor],
              dtype: str) -> np.ndarray:
    batch = torch.stack(images).to(model.mean.device)
    return model(model.normalize(batch)).cpu().numpy().astype(dtype)
