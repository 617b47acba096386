"""Requirements: the libraries, packaged files, and this process."""
import difflib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TextIO, cast

_NAMES = ('cmae', 'cmae.exe', 'cmae-script.py')
# Debug messages of mmpretrain, and messages of mmdet without mmcv's operators
# whose advice does not help.
_NOISE = ('Could not import OneDL', 'Line NMS is not compiled')


def is_command() -> bool:
    """Return whether this process is the command ``cmae``.

    The command imports torch and the libraries, by ``cmae_mm.register()``,
    only when it needs them, so that ``--help`` is fast. A data worker that
    the command has spawned is not the command.
    """
    if '--multiprocessing-fork' in sys.orig_argv:
        return False
    started = next(iter(getattr(sys, 'argv', [])), '')
    if started == '-m':  # the package is being imported to find its __main__
        at = sys.orig_argv.index('-m') if '-m' in sys.orig_argv else 0
        return sys.orig_argv[at + 1:at + 2] == ['cmae_mm']
    return PurePath(started).name in _NAMES


def import_on_use(package: str, modules: Mapping[str, Sequence[str]]
                  ) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package that imports names on first use.

    Args:
        package (str): Name of the package.
        modules (Mapping[str, Sequence[str]]): Names by module, relative to
            the package.
    """
    places = {name: f'.{module}' for module, names in modules.items()
              for name in names}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(
                f'module {package!r} has no attribute {name!r}')
        return getattr(importlib.import_module(places[name], package), name)

    return find


def check_system() -> None:
    """Check that this is a POSIX system, on which files can be locked.

    Raises:
        SystemExit: If it is not and this process is the command.
        ImportError: If it is not and the package is imported.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError as error:
        message = ('cmae_mm needs Linux or macOS; on Windows run it in WSL '
                   '(Windows Subsystem for Linux)')
        if is_command():
            sys.exit(f'cmae: {message}')
        raise ImportError(message) from error


class _WithoutNoise:
    """Stream that drops messages of libraries at import.

    Loggers created during the import may keep the stream, so other output is
    forwarded.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._after_noise = False

    def write(self, text: str) -> int:
        # print() writes the end of a line by itself.
        dropped = any(noise in text for noise in _NOISE) or (
            self._after_noise and text == '\n')
        self._after_noise = dropped and not text.endswith('\n')
        return len(text) if dropped else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _NOISE)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop import messages about operators that pre-training does not need.

    ``cmae doctor`` and configs that need mmcv's operators report them.
    """
    warnings.filterwarnings(
        'ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    # An existing logger does not write to the stream below.
    logging_module = sys.modules.get('mmengine.logging')
    logger = None if logging_module is None else (
        logging_module.MMLogger.get_current_instance())
    if logger is not None:
        logger.addFilter(_is_wanted)
    try:
        with redirect_stdout(cast(TextIO, _WithoutNoise(sys.stdout))):
            yield
    finally:
        if logger is not None:
            logger.removeFilter(_is_wanted)


# Weights in folders of transformers and timm.
WEIGHT_FILES = ('model.safetensors', 'model.safetensors.index.json',
                'pytorch_model.bin', 'pytorch_model.bin.index.json',
                'adapter_model.safetensors')
# Suffixes of files of weights.
WEIGHT_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt', '.pkl')
_PACKAGE = Path(__file__).resolve().parent
# Detection and segmentation of the original distribution.
_ORIGINAL_DENSE = dict(
    det='pip install mmdet==3.3.0',
    seg='pip install mmsegmentation==1.2.2 ftfy regex')


def packaged_root() -> Path:
    """Find the folder that contains ``configs`` and ``tools``.

    Returns:
        Path: The package's ``.mim``, or the clone's root.

    Raises:
        FileNotFoundError: If neither the package nor a clone contains them.
    """
    for root in (_PACKAGE / '.mim', _PACKAGE.parent):
        if (root / 'configs').is_dir() and (root / 'tools').is_dir():
            return root
    raise FileNotFoundError(
        f'the configs of cmae_mm are neither in {_PACKAGE / ".mim"} nor next '
        'to the package; install it again')


def in_clone() -> bool:
    """Return whether the package is used from a clone of the project."""
    return (_PACKAGE.parent / 'setup.cfg').is_file()


def install_command(extra: str) -> str:
    """Return the command that installs an extra of setup.cfg.

    Args:
        extra (str): Name of the extra, for example 'det'.

    Returns:
        str: The pip command, for a clone or for an installed package.
    """
    what = f"-e '.[{extra}]'" if in_clone() else f"'cmae_mm[{extra}]'"
    return f'pip install {what}'


def is_installed(distribution: str) -> bool:
    """Return whether a distribution is installed, without importing it."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def uses_original() -> bool:
    """Return whether the original OpenMMLab packages are installed.

    Returns:
        bool: False with OneDL's packages, and without any.
    """
    return is_installed('mmengine') and not is_installed('onedl-mmengine')


def framework_command() -> str:
    """Return the command that installs the distribution in use."""
    if not uses_original():
        return install_command('onedl')
    has_mmcv = is_installed('mmcv') or is_installed('mmcv-lite')
    return install_command('openmmlab' if has_mmcv else 'openmmlab,lite')


def dense_command(extra: str) -> str:
    """Return the command that installs mmdetection or mmsegmentation.

    Args:
        extra (str): 'det' or 'seg'.
    """
    if uses_original():
        return _ORIGINAL_DENSE[extra]
    return install_command(extra)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Find the checkpoint file of a path.

    Args:
        path (str | PathLike): A file; a folder of transformers or timm; the
            folder of ``cmae finetune`` with ``best.pth``; or a work folder, in
            which ``last_checkpoint`` contains the name of the newest
            checkpoint.

    Returns:
        Path: The file, or the path itself if none is found.
    """
    file = Path(path).expanduser()
    if not file.is_dir():
        return file
    for name in (*WEIGHT_FILES, 'best.pth'):
        if (file / name).is_file():
            return file / name
    pointer = file / 'last_checkpoint'
    if pointer.is_file():
        return file / Path(pointer.read_text().strip()).name
    return file


def explain_missing(path: str | os.PathLike[str]) -> str:
    """Explain why a path names no checkpoint file.

    Args:
        path (str | PathLike): The path, after :func:`find_checkpoint`.

    Returns:
        str: A sentence; '' if it is a file.
    """
    file = Path(path)
    if file.is_dir():
        if (file / '.metadata').is_file():
            return (f'{file} is a folder of torch.distributed.checkpoint; '
                    'convert it with `python -m torch.distributed.checkpoint.'
                    f'format_utils dcp_to_torch {file} FILE`')
        names = sorted(p.name for p in file.iterdir()
                       if p.suffix.lower() in WEIGHT_SUFFIXES)
        hint = f'name a file, such as {names[0]}' if names else (
            'name a file, or a folder with one of '
            f'{", ".join(WEIGHT_FILES[:4])}')
        return f'the folder {file} contains no checkpoint; {hint}'
    if file.exists():
        return ''
    if ':/' in str(path):
        return f'{path} is an address; download the file, and name its path'
    is_hub = not file.suffix and not os.path.isabs(file) and (
        len(file.parts) == 2 and not file.parent.exists())
    return f'there is no checkpoint {file}' + (
        '; models of a hub are not downloaded: download the folder, and name '
        'its path' if is_hub else '')


def suggest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the nearest of the known words, for the end of a message.

    Args:
        word (str): The unknown word.
        known (Iterable[str]): The known words.
        cutoff (float): The least similarity, see difflib. Defaults to 0.6.

    Returns:
        str: "; did you mean 'a' or 'b'?", or '' if no word is near.
    """
    near = difflib.get_close_matches(
        word, list(dict.fromkeys(known)), n=3, cutoff=cutoff)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''


def name_of(kind: Any) -> str:
    """Return the bare name of a type in a config, a class or a string."""
    if not isinstance(kind, str):
        kind = getattr(kind, '__name__', str(kind))
    return kind.split('.')[-1]


def find_config(name: str) -> str:
    """Find a config by its path, or a packaged one by its name.

    Args:
        name (str): Path of a file, or name of a config below ``configs``,
            with or without its folder, ``configs/`` and ``.py``, for example
            'finetune/vit-b_pt300e_100e_in1k'.

    Returns:
        str: Path of the file.

    Raises:
        FileNotFoundError: If no config, or several, have this name; the
            message lists the nearest names.
    """
    name = os.path.expanduser(name)
    if Path(name).is_file():
        return name
    configs = packaged_root() / 'configs'
    wanted = name.removeprefix('configs/').removesuffix('.py')
    found = {
        str(p.relative_to(configs))[:-len('.py')]: p
        for p in sorted(configs.rglob('*.py'))
        if '_base_' not in p.parts
    }
    if wanted in found:
        return str(found[wanted])
    same = [key for key in found if Path(key).name == wanted]
    if len(same) == 1:
        return str(found[same[0]])
    hint = suggest(wanted, same, 0.) or suggest(wanted, found, 0.5) or (
        suggest(wanted, {Path(key).name for key in found}, 0.5))
    raise FileNotFoundError(
        f'there is no file and no packaged config {name!r}'
        f'{hint or f"; the packaged configs are in {configs}"}')


class Requirement(NamedTuple):
    """A supported range: ``minimum <= version < below``."""

    minimum: str
    below: str
    command: str


_FRAMEWORK = framework_command()

# In this order: importing mmpretrain fails without mmcv or mmengine.
REQUIREMENTS = {
    'torch': Requirement('2.1', '3', 'pip install torch torchvision'),
    'mmengine': Requirement('0.10.0', '1.0', _FRAMEWORK),
    'mmcv': Requirement('2.0.0', '2.4', _FRAMEWORK),
    'mmpretrain': Requirement('1.2.0', '2.0', _FRAMEWORK),
}


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_transformers(
        version_of: Callable[[str], str] = importlib.metadata.version) -> None:
    """Check for packages that break the import of mmpretrain.

    Args:
        version_of (Callable): Function that returns the version of a
            distribution, by its name. Defaults to the installed version.

    Raises:
        ImportError: If transformers 5 or newer is installed beside
            pycocotools, which mmdetection needs.
    """
    # Not at the top: `cmae doctor` works without any library.
    from packaging.version import Version
    try:
        version_of('pycocotools')
        found = version_of('transformers')
    except importlib.metadata.PackageNotFoundError:
        return
    if Version(found) >= Version('5'):
        raise ImportError(
            'mmpretrain cannot be imported if both pycocotools and '
            f'transformers>=5 are installed (found {found}); install an older '
            "transformers with `pip install 'transformers>=4.53,<5'`.")


class MissingLibrary(RuntimeError):
    """An optional library that a config needs is not installed.

    Not a subclass of ``ImportError``: mmengine replaces those by an error
    without the name of the library.
    """


def require(module: str, purpose: str, extra: str) -> None:
    """Check that an optional library is installed.

    Args:
        module (str): Its import name.
        purpose (str): The feature that needs it, the start of the message.
        extra (str): The extra of setup.cfg that installs it.

    Raises:
        MissingLibrary: If it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingLibrary(
            f'{purpose} needs {module}, which is not installed: install it '
            f'with `{install_command(extra)}`')


def ops_command() -> str:
    """Return the command that installs mmcv's compiled operators."""
    script = 'tools/install_ops.sh'
    return f'bash {script if in_clone() else packaged_root() / script}'


def missing_ops() -> str:
    """Describe why mmcv's operators cannot be imported, '' if they can."""
    try:
        importlib.import_module('mmcv.ops')
    except ModuleNotFoundError:
        return 'not compiled'
    except ImportError:  # an undefined symbol
        return 'compiled for another version of torch'
    return ''


def require_dense(name: str, extra: str) -> None:
    """Check that the libraries for detection or segmentation are installed.

    Args:
        name (str): Import name of the library, 'mmdet' or 'mmseg'.
        extra (str): The extra of setup.cfg that installs it.

    Raises:
        MissingLibrary: If it is missing, or mmcv's operators are.
    """
    missing = missing_ops()
    if missing:
        raise MissingLibrary(
            f"{name} needs mmcv's operators, but the operators are {missing}; "
            f'install them with `{ops_command()}`.')
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f'this config needs {name}, but {error.name} is not installed: '
            f'install it with `{dense_command(extra)}`.') from error


def check_dependencies(
        version_of: Callable[[str], str] = lambda name:
        importlib.import_module(name).__version__) -> None:
    """Check torch, mmengine, mmcv and mmpretrain.

    Args:
        version_of (Callable): Function that returns the version of a module,
            by its import name, or raises ``ImportError``. Defaults to
            importing the module.

    Raises:
        ImportError: If one is missing or outside the supported range. The
            message is one sentence that names the module, the supported
            range, and the command that installs it.
    """
    from packaging.version import Version
    for name, need in REQUIREMENTS.items():
        supported = f'{name}>={need.minimum},<{need.below}'
        advice = f'install it with `{need.command}`'
        try:
            found = version_of(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            raise ImportError(
                f'cmae_mm needs {supported}, but {missing} is not installed: '
                f'{advice}.') from error
        release = Version(Version(found).base_version)
        if not Version(need.minimum) <= release < Version(need.below):
            raise ImportError(
                f'cmae_mm needs {supported}, but {found} is installed: '
                f'{advice}.')


def import_framework() -> None:
    """Import torch, mmengine, mmcv and mmpretrain and check their versions.

    Raises:
        ImportError: If one is missing or of an unsupported version.
    """
    with quiet_imports():
        check_dependencies()
        check_transformers()
