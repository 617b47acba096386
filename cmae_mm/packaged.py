"""Locations of configs and tools, in a clone or in the installed package."""
import difflib
import os
from importlib import metadata
from pathlib import Path
from typing import Iterable, Union

# Weights in folders of transformers and timm.
WEIGHT_FILES = ('model.safetensors', 'model.safetensors.index.json',
                'pytorch_model.bin', 'pytorch_model.bin.index.json',
                'adapter_model.safetensors')
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


def find_checkpoint(path: Union[str, 'os.PathLike[str]']) -> Path:
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
