"""Supported versions of the libraries that the plugin builds on.

Two distributions provide the modules ``mmengine``, ``mmcv`` and
``mmpretrain``: the maintained OneDL packages and the original OpenMMLab
packages. pip cannot express "either of them", so versions are checked at
import.
"""
import importlib
import importlib.metadata
import importlib.util
import os
from typing import Callable, NamedTuple

from .entry import quiet_imports
from .packaged import (
    dense_command,
    framework_command,
    in_clone,
    install_command,
    packaged_root,
)


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


def installed_version(name: str) -> str:
    """Import a module and return its version.

    Raises:
        ImportError: If the module is not installed.
    """
    return importlib.import_module(name).__version__


def check_dependencies(
        version_of: Callable[[str], str] = installed_version) -> None:
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
