"""Features of any folder of images."""
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ..dependencies import find_checkpoint, require
from ..files import output_lock
from ..image_size import to_pair, to_size
from .arguments import (BatchSize, Checkpoint, Data, Encoder, ImgSize, Layers,
                        NumHeads, NumWorkers, Output, PathLike, Stats, Text,
                        command, interruptible)

if TYPE_CHECKING:
    from ..datasets.source import ImageSource
    from .encoder import PretrainedEncoder


AnyEncoder = Annotated[Checkpoint, Text(
    'Checkpoint or folder of a pre-training or fine-tuning, an exported '
    'encoder, or weights of another library.')]


class Embeddings(NamedTuple):
    """Features of a folder's images.

    Args:
        paths (list[str]): The images, relative to the folder.
        features (np.ndarray | None): In their order, (N, D), or (N, L, D) of
            patch tokens; None if they were written to a file.
        shape (tuple[int, ...]): Shape of all features.
        skipped (dict[str, str]): Images that could not be read, and why.
        out (Path | None): The file, if one was written.
    """

    paths: list[str]
    features: Any
    shape: tuple[int, ...]
    skipped: dict[str, str]
    out: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what ``cmae embed --json`` prints."""
        return dict(out=str(self.out), shape=list(self.shape),
                    skipped=len(self.skipped))


def check_parquet(out: PathLike | None, **others: Any) -> None:
    """Check that pyarrow (extra='embed') is installed for a parquet file.

    Raises:
        MissingLibrary: If it is not installed.
        ImportError: If it does not fit numpy.
    """
    if out is None or Path(out).suffix.lower() != '.parquet':
        return
    require('pyarrow', 'a parquet file', 'embed')
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:  # current ones need numpy 2
        raise ImportError(
            f'parquet files are written by pyarrow, but {error}: install an '
            "older one with `pip install 'pyarrow<22'`, or name a file that "
            'ends in .npz') from error


@dataclass(frozen=True)
class EncoderOptions:
    """Options of all commands that load an encoder without a config."""

    encoder: Encoder = 'online'
    img_size: ImgSize = None
    num_heads: NumHeads = None

    def load(self, checkpoint: PathLike, pool: Any,
             **others: Any) -> 'PretrainedEncoder':
        """Load the encoder onto the device."""
        from mmengine.device import get_device

        from .encoder import load_encoder
        return load_encoder(
            checkpoint, self.encoder, pool=pool, img_size=self.img_size,
            num_heads=self.num_heads, **others).to(get_device())


@dataclass(frozen=True)
class FeatureOptions(EncoderOptions):
    """Options of the commands that compute the features of a folder."""

    batch_size: BatchSize = 64
    num_workers: NumWorkers = None


@dataclass(frozen=True)
class EmbedOptions(FeatureOptions):
    """Options of :func:`embed`."""

    pool: Annotated[Literal['mean', 'cls', 'patch'], Text(
        'Mean of the patch tokens, class token, or all patch tokens.')
    ] = 'mean'
    layer: Layers = ()
    dtype: Annotated[Literal['float32', 'float16'], Text(
        'Data type of the features.')] = 'float32'
    stats: Annotated[Stats, Text(
        'File of `cmae stats`, for checkpoints of other projects that do not '
        'record the normalisation.')] | None = None

    def settings(self, source: 'ImageSource', checkpoint: PathLike
                 ) -> dict[str, Any]:
        """Return the settings that features depend on, as plain values."""
        path = Path(checkpoint)
        stat = find_checkpoint(path).stat()
        more: dict[str, Any] = {}
        if self.layer:  # files of earlier versions have none
            more['layer'] = list(self.layer)
        if self.stats is not None:
            content = Path(self.stats).read_bytes()
            more['stats'] = hashlib.sha256(content).hexdigest()[:16]
        return dict(
            more,
            data=source.place,
            images=len(source),
            # Detects replaced images, whose features differ.
            files=_fingerprint(source),
            checkpoint=os.path.abspath(path),
            checkpoint_bytes=stat.st_size,
            checkpoint_written=stat.st_mtime_ns,
            encoder=self.encoder,
            pool=self.pool,
            img_size=self.img_size and to_size(to_pair(self.img_size)),
            num_heads=self.num_heads,
            dtype=self.dtype)


@command(check=check_parquet, libraries='framework', required=('out', ),
         options=EmbedOptions)
def embed(data: Data,
          checkpoint: AnyEncoder,
          out: Annotated[PathLike, Output('.npz', '.parquet')] | None = None,
          **options: Any) -> Embeddings:
    """Compute features of any folder of images.

    No labels and no config are needed. Images are resized, cropped and
    normalised as in `cmae knn`, so the features are the same. Unreadable
    images are skipped and listed. An accelerator is used if available.

    Features are saved every half minute; if interrupted, the same command
    continues. ``np.load`` of an ``.npz`` file returns ``paths``, ``features``,
    ``skipped``, ``reasons`` and ``settings``; a ``.parquet`` file has the
    columns ``path`` and ``feature``.

    Example::

        $ cmae embed photos epoch_100.pth --out features.npz

        import cmae_mm
        paths, features, *_ = cmae_mm.embed('photos', 'epoch_300.pth')

    Args:
        data: Folder of images, list, store or shards.
        out: File to write, .npz or .parquet. Optional in Python, where the
            features are returned.

    Returns:
        Embeddings: Names and features.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        FeatureFileError: If ``out`` was begun or written with other
            arguments.
        ValueError: If there are no images, or none that can be read.
    """
    from ..datasets.source import open_source
    given = EmbedOptions(**options)

    def load() -> 'PretrainedEncoder':
        model = given.load(checkpoint, given.pool, stats=given.stats)
        model.use_layers(given.layer)
        return model

    return embed_source(open_source(data), checkpoint, load, out, given)


def embed_source(source: 'ImageSource', checkpoint: PathLike,
                 load: Callable[[], 'PretrainedEncoder'],
                 out: PathLike | None, options: EmbedOptions
                 ) -> Embeddings:
    """Compute the features of a source, or read a complete file of them.

    Args:
        source (ImageSource): The images.
        checkpoint (str | PathLike): File of the encoder.
        load (Callable): Loads the encoder, if features are missing.
        out (str | PathLike, optional): See :func:`embed`.
        options (EmbedOptions): Other arguments.

    Returns:
        Embeddings: See :func:`embed`.
    """
    from ..evaluation.feature_files import FeatureFile, read_whole
    from ..evaluation.features import (compute_features, describe_none,
                                       print_skipped, warn_if_equal)
    print(source.describe(), flush=True)

    def compute(ranges: list[tuple[int, int]], in_parts: bool
                ) -> Iterator[Any]:
        return compute_features(load(), source, ranges, options.batch_size,
                                options.num_workers, options.dtype, in_parts)

    if out is None:
        whole = next(compute([(0, len(source))], False))
        if not whole.paths:
            raise ValueError(describe_none(whole.skipped))
        print_skipped(whole.skipped)
        warn_if_equal(whole.features)
        return Embeddings(whole.paths, whole.features, whole.features.shape,
                          whole.skipped)
    path = Path(out)
    with output_lock(path), interruptible(
            f'the features so far are in {out}.parts; the same command '
            'continues'):
        file = FeatureFile(path, options.settings(source, checkpoint),
                           source.names)
        if file.is_whole:
            found, shape, skipped = read_whole(path)
        else:
            ranges = file.missing()
            for part in compute(ranges, True) if ranges else ():
                file.add(part)
            found, shape, skipped = file.finish()
    size = 'x'.join(map(str, shape[1:]))
    print(f'{shape[0]:,} images, {size} features each, in {path}')
    print_skipped(skipped, f'; {path}.skipped.txt lists them')
    return Embeddings(found, None, shape, skipped, path)


def _fingerprint(source: 'ImageSource') -> str:
    """Hash the names of images, and sizes and times of their files."""
    from ..datasets.source import INDEX_FILE, STORE_FILE
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
    except OSError:  # reading the image reports the error
        return b''
    return b'%d %d\0' % (found.st_size, found.st_mtime_ns)
