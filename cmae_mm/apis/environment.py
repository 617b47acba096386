"""Report versions, devices and missing packages with install commands."""
import configparser
import contextlib
import io
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..dependencies import (REQUIREMENTS, cpu_count, dense_command,
                            framework_command, in_clone, install_command,
                            is_installed, missing_ops, ops_command)
from ..version import __version__
from .arguments import command

_PACKAGE = Path(__file__).resolve().parents[1]
# Distributions that contain the framework's modules, by module.
_FRAMEWORK = dict(
    mmengine=('onedl-mmengine', 'mmengine'),
    mmcv=('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    mmpretrain=('onedl-mmpretrain', 'mmpretrain'))
# Optional libraries: distributions, purpose, and the extra of setup.cfg.
_OPTIONAL = dict(
    mmdet=(('onedl-mmdetection', 'mmdet'), 'detection', 'det'),
    mmseg=(('onedl-mmsegmentation', 'mmsegmentation'), 'segmentation', 'seg'),
    pyarrow=(('pyarrow', ), 'parquet files of cmae embed', 'embed'),
    pydicom=(('pydicom', ), 'DICOM files', 'dicom'),
    rasterio=(('rasterio', ), 'masks and compressions of GeoTIFF files',
              'geotiff'))


def examine() -> dict[str, Any]:
    """Examine libraries, devices and the machine.

    Also works if libraries are missing or broken.

    Returns:
        dict[str, Any]: ``problems`` are sentences on reasons why pre-training
        cannot run, ``warnings`` on possible issues. ``exit_status`` is 1 if
        there are problems.
    """
    libraries: dict[str, dict[str, str]] = {}
    try:
        libraries = _examine_libraries()
        problems = [
            f'{name} {found["version"] or "is not installed"}, but cmae_mm '
            f'needs {found["needed"]}; install it with `{found["command"]}`'
            for name, found in libraries.items() if found['command']]
    except ModuleNotFoundError as error:  # packaging itself
        problems = [f'{error.name} is not installed; install the requirements '
                    f'of cmae_mm with `{framework_command()}`']
    environment: dict[str, str] = {}
    if not problems:
        try:
            environment = _collect_environment()
        # A broken library may raise any error.
        except Exception as error:
            problems = [' '.join(str(error).split()) or type(error).__name__]
    machine = dict(cores=cpu_count(), disk_free_gb=_free_gb('.'))
    if Path('/dev/shm').is_dir():
        machine['shared_memory_gb'] = _free_gb('/dev/shm')
    return dict(
        cmae_mm=__version__, folder=str(_PACKAGE), clone=in_clone(),
        python=platform.python_version(), platform=platform.platform(),
        libraries=libraries, optional=_examine_optional(),
        environment=environment, machine=machine, problems=problems,
        warnings=_find_conflicts(), exit_status=int(bool(problems)))


def _examine_libraries() -> dict[str, dict[str, str]]:
    """Compare the installed versions with the required ones."""
    from packaging.requirements import Requirement
    try:
        lines = metadata.requires('cmae_mm') or []
    except metadata.PackageNotFoundError:
        config = configparser.ConfigParser()
        config.read(_PACKAGE.parent / 'setup.cfg')
        lines = [line for line in config['options']['install_requires']
                 .splitlines() if line and not line.startswith('#')]
    needs = [need for need in map(Requirement, lines) if not need.marker]
    needs += [Requirement(f'{name}>={need.minimum},<{need.below}')
              for name, need in REQUIREMENTS.items() if name in _FRAMEWORK]
    found = {}
    for need in needs:
        version = _version(_FRAMEWORK.get(need.name, (need.name, )))
        wrong = not version or not need.specifier.contains(version, True)
        command = ('pip install torch torchvision'
                   if need.name in ('torch', 'torchvision')
                   else framework_command())
        found[need.name] = dict(
            version=version, needed=str(need.specifier),
            command=command if wrong else '')
    return found


def _examine_optional() -> dict[str, dict[str, str]]:
    found = {}
    for name, (distributions, purpose, extra) in _OPTIONAL.items():
        command = (dense_command(extra) if name in ('mmdet', 'mmseg')
                   else install_command(extra))
        found[name] = dict(
            version=_version(distributions), purpose=purpose, command=command)
    return found


def _version(distributions: Sequence[str]) -> str:
    """Return the version of the first installed distribution, or ''."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ''


def _collect_environment() -> dict[str, str]:
    """Import the libraries and collect mmengine's environment."""
    with contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        import cmae_mm
        cmae_mm.register()
        from mmengine.utils.dl_utils import collect_env
        found = {name: str(value) for name, value in collect_env().items()}
        missing = missing_ops()
    operators = (f'{missing}; for detection and segmentation: {ops_command()}'
                 if missing else 'compiled')
    for name in ('PyTorch compiling details', 'numpy_random_seed'):
        found.pop(name, None)
    return dict(found, **{'mmcv operators': operators})


def _free_gb(folder: str) -> float:
    """Return the free space of a file system in GB."""
    return round(shutil.disk_usage(folder).free / 2**30, 1)


def _find_conflicts() -> list[str]:
    """Find distributions that overwrite each other's files."""
    found = ([n for n in names if is_installed(n)]
             for names in _FRAMEWORK.values())
    return [
        f'{" and ".join(names)} overwrite each other\'s files; uninstall all '
        'of them, then install one' for names in found if len(names) > 1]


@command(libraries=False)
def doctor() -> dict[str, Any]:
    """Report versions, devices and missing packages.

    Versions, devices, operators, free disk and shared memory, and the command
    that installs what is missing. The exit status is 0 if pre-training can
    run here, and 1 otherwise.

    Example::

        $ cmae doctor
        $ cmae doctor --json

    Returns:
        dict[str, Any]: See :func:`examine`.
    """
    found = examine()
    where = 'a clone' if found['clone'] else 'installed'
    print(f'cmae_mm {found["cmae_mm"]} in {found["folder"]}, {where}\n'
          f'Python {found["python"]} on {found["platform"]}\n')
    for name, row in [*found['libraries'].items(),
                      *found['optional'].items()]:
        note = f'needed: {row["needed"]}' if 'needed' in row else (
            f'for {row["purpose"]}: {row["command"]}')
        fits = row['version'] and (not row['command'] or 'purpose' in row)
        print(f'  {name:<16} {row["version"] or "-":<12} '
              f'{"" if fits else note}'.rstrip())
    print()
    for name, value in {**found['environment'], **found['machine']}.items():
        print(f'  {name}: {value}')
    print()
    for kind in ('warnings', 'problems'):
        for sentence in found[kind]:
            print(f'{kind[:-1]}: {sentence}')
    print('pre-training cannot run here' if found['problems'] else
          'pre-training can run here')
    return found
