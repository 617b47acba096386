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

from ..datasets.source import ImageSource, open_source
from ..datasets.workers import ignore_interrupts
from ..dependencies import cpu_count
from ..files import output_lock
from ..progress import Progress
from .checks import PathLike, check_data, check_embedding
from .encoder import load_encoder
from .feature_files import FeatureFile, Part, describe_none, read_whole
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
                 start: int) -> None:
        self.source, self.start = source, start
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __getitem__(self, index: int) -> Tuple[str, Optional[Tensor], str]:
        index += self.start
        path = self.source.names[index]
        try:
            image = self.encoder.decode(self.source.read(index), path)
            return path, self.encoder.crop(image), ''
        # Decoders raise all sorts of errors on broken files.
        except Exception as error:
            return path, None, ' '.join(str(error).split())


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
        data (str | PathLike): Folder of images, or a store.
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
        OutputInUse: If another process writes ``out``.
        ValueError: If there are no images, or none that can be read.
    """
    check_embedding(data, checkpoint, out, encoder, pool, batch_size,
                    num_workers, img_size, dtype, stats)
    source = open_source(check_data(data))

    def load() -> PretrainedEncoder:
        return load_encoder(
            checkpoint, encoder, pool=pool, img_size=img_size,
            num_heads=num_heads, stats=stats).to(get_device())

    if out is None:
        print(source.describe(), flush=True)
        whole = next(_compute(load(), source, 0, batch_size, num_workers,
                              dtype, in_parts=False))
        if not whole.paths:
            raise ValueError(describe_none(whole.skipped))
        return Embeddings(whole.paths, whole.features, whole.features.shape,
                          whole.skipped)
    path = Path(out).expanduser()
    with output_lock(path):
        print(source.describe(), flush=True)
        file = FeatureFile(path, _settings(
            source, Path(checkpoint).expanduser(), encoder, pool, img_size,
            num_heads, dtype, stats))
        if file.is_whole:
            found, shape, skipped = read_whole(path)
            return Embeddings(found, None, shape, skipped, path)
        for part in _compute(load(), source, file.count_done(), batch_size,
                             num_workers, dtype, in_parts=True):
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
    files = source.fingerprint()
    more: Dict[str, Any] = {}
    if stats is not None:
        content = Path(stats).expanduser().read_bytes()
        more['stats'] = hashlib.sha256(content).hexdigest()[:16]
    return dict(
        more,
        data=source.root,
        images=len(source),
        files=files[:16],
        checkpoint=os.path.abspath(checkpoint),
        checkpoint_bytes=stat.st_size,
        checkpoint_written=stat.st_mtime_ns,
        encoder=encoder,
        pool=pool,
        img_size=img_size,
        num_heads=num_heads,
        dtype=dtype)


def _compute(model: PretrainedEncoder, source: ImageSource, start: int,
             batch_size: int, num_workers: Optional[int],
             dtype: str, in_parts: bool) -> Iterator[Part]:
    """Yield parts, or all in one, from image ``start`` on."""
    if num_workers is None:
        num_workers = min(8, cpu_count())
    loader = DataLoader(
        _Images(source, model, start),
        batch_size,
        num_workers=num_workers,
        worker_init_fn=ignore_interrupts,
        collate_fn=list)
    names: List[str] = []
    features: List[np.ndarray] = []
    skipped: Dict[str, str] = {}
    begun = time.monotonic()
    stop = start

    def take() -> Part:
        nonlocal begun, start
        kept = np.concatenate(features) if features else np.zeros((0, ), dtype)
        part = Part(start, stop, list(names), kept, dict(skipped))
        names.clear()
        features.clear()
        skipped.clear()
        begun, start = time.monotonic(), stop
        return part

    with Progress(len(source), 'features', initial=start) as progress:
        for batch in loader:
            images = [image for _, image, _ in batch if image is not None]
            if images:
                features.append(_features(model, images, dtype))
            for path, image, reason in batch:
                if image is None:
                    skipped[path] = reason
                else:
                    names.append(path)
            stop += len(batch)
            progress.update(len(batch))
            size = sum(f.nbytes for f in features)
            if in_parts and (size >= _PART_BYTES or
                             time.monotonic() - begun >= _PART_SECONDS):
                yield take()
    if stop > start or not in_parts:
        yield take()


@torch.no_grad()
def _features(model: PretrainedEncoder, images: List[Tensor],
              dtype: str) -> np.ndarray:
    batch = torch.stack(images).to(model.mean.device)
    return model(model.normalize(batch)).cpu().numpy().astype(dtype)
