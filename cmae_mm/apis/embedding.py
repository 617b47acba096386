"""Features of any folder of images."""
import hashlib
import os
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Dict,
    Iterator,
    List,
    Literal,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..dependencies import require
from ..files import output_lock
from ..image_size import ImageSize, to_pair, to_size
from ..packaged import find_checkpoint
from .arguments import (
    Checkpoint,
    Count,
    Data,
    Encoder,
    ImgSize,
    Layers,
    Output,
    PathLike,
    Size,
    Stats,
    command,
    interruptible,
)

if TYPE_CHECKING:
    from ..datasets.source import ImageSource


class Embeddings(NamedTuple):
    """Features of a folder's images.

    Args:
        paths (List[str]): The images, relative to the folder.
        features (np.ndarray | None): In their order, (N, D), or (N, L, D) of
            patch tokens; None if they were written to a file.
        shape (Tuple[int, ...]): Shape of all features.
        skipped (Dict[str, str]): Images that could not be read, and why.
        out (Path | None): The file, if one was written.
    """

    paths: List[str]
    features: Any
    shape: Tuple[int, ...]
    skipped: Dict[str, str]
    out: Optional[Path] = None

    def as_json(self) -> Dict[str, Any]:
        """Return what ``cmae embed --json`` prints."""
        return dict(out=str(self.out), shape=list(self.shape),
                    skipped=len(self.skipped))


def _check_parquet(out: Optional[PathLike], **others: Any) -> None:
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


@command(check=_check_parquet, libraries='framework', required=('out', ))
def embed(data: Data,
          checkpoint: Checkpoint,
          out: Optional[Annotated[
              PathLike, Output('.npz', '.parquet')]] = None,
          *,
          encoder: Encoder = 'online',
          pool: Literal['mean', 'cls', 'patch'] = 'mean',
          layer: Layers = (),
          batch_size: Size = 64,
          num_workers: Optional[Count] = None,
          img_size: ImgSize = None,
          dtype: Literal['float32', 'float16'] = 'float32',
          num_heads: Optional[Size] = None,
          stats: Optional[Stats] = None) -> Embeddings:
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
        checkpoint: Pre-training checkpoint, exported backbone, fine-tuned
            classifier, or released CMAE or MAE checkpoint.
        out: File to write, .npz or .parquet. Optional in Python, where the
            features are returned.
        encoder: Encoder of the checkpoint: online is the trained one, target
            its moving average. For DINO and iBOT, online is the teacher and
            target the student. Defaults to online.
        pool: Mean of the patch tokens, class token, or all patch tokens.
            Defaults to mean.
        batch_size: Images in a batch. Defaults to 64.
        num_workers: Number of data workers. Defaults to one for each CPU core,
            at most 8.
        dtype: Data type of the features. Defaults to float32.
        num_heads: Number of attention heads. Only for checkpoints of other
            projects that do not record it.
        stats: File of `cmae stats`, for checkpoints of other projects that do
            not record the normalisation.

    Returns:
        Embeddings: Names and features.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the checkpoint cannot be used.
        FeatureFileError: If ``out`` was begun or written with other
            arguments.
        ValueError: If there are no images, or none that can be read.
    """
    from mmengine.device import get_device

    from ..datasets.source import open_source
    from ..evaluation.feature_files import (
        FeatureFile,
        describe_none,
        read_whole,
    )
    from ..evaluation.features import compute_features
    from .encoder import load_encoder
    source = open_source(data)
    print(source.describe(), flush=True)

    def compute(ranges: List[Tuple[int, int]], in_parts: bool
                ) -> Iterator[Any]:
        model = load_encoder(
            checkpoint, encoder, pool=pool, img_size=img_size,
            num_heads=num_heads, stats=stats).to(get_device())
        model.use_layers(layer)
        return compute_features(model, source, ranges, batch_size,
                                num_workers, dtype, in_parts)

    if out is None:
        whole = next(compute([(0, len(source))], False))
        if not whole.paths:
            raise ValueError(describe_none(whole.skipped))
        return Embeddings(whole.paths, whole.features, whole.features.shape,
                          whole.skipped)
    path = Path(out).expanduser()
    with output_lock(path), interruptible(
            f'the features so far are in {out}.parts; the same command '
            'continues'):
        file = FeatureFile(
            path, _settings(source, Path(checkpoint).expanduser(), encoder,
                            pool, layer, img_size, num_heads, dtype, stats),
            source.names)
        if file.is_whole:
            found, shape, skipped = read_whole(path)
        else:
            ranges = file.missing()
            for part in compute(ranges, True) if ranges else ():
                file.add(part)
            found, shape, skipped = file.finish()
    done = Embeddings(found, None, shape, skipped, path)
    _print(done)
    return done


def _print(done: Embeddings) -> None:
    """Print the number of features and the skipped images."""
    from ..datasets.names import add_reason
    shape = 'x'.join(str(n) for n in done.shape[1:])
    print(f'{done.shape[0]:,} images, {shape} features each, in {done.out}')
    for path, reason in list(done.skipped.items())[:5]:
        print(f'skipped: {add_reason(path, reason)}')
    if done.skipped:
        print(f'{len(done.skipped):,} images could not be read; '
              f'{done.out}.skipped.txt lists them')


def _settings(source: 'ImageSource', checkpoint: Path, encoder: str,
              pool: str, layer: Sequence[int],
              img_size: Optional[ImageSize], num_heads: Optional[int],
              dtype: str, stats: Optional[PathLike]) -> Dict[str, Any]:
    """Return the settings that features depend on, as plain values."""
    stat = find_checkpoint(checkpoint).stat()
    # Detects replaced images, whose features differ.
    files = _fingerprint(source)
    more: Dict[str, Any] = {}
    if layer:  # files of earlier versions have none
        more['layer'] = list(layer)
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
        img_size=img_size if img_size is None else to_size(to_pair(img_size)),
        num_heads=num_heads,
        dtype=dtype)


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
