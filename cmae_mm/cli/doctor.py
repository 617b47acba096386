"""What this machine has, what is missing, and the command that installs it."""
import argparse
import configparser
import contextlib
import importlib
import importlib.util
import io
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from ..dependencies import REQUIREMENTS, cpu_count
from ..packaged import (
    dense_command,
    framework_command,
    in_clone,
    install_command,
)
from ..version import __version__
from .command import Command, Result

_PACKAGE = Path(__file__).resolve().parents[1]
_LEAST_PYTHON = (3, 10)
# Import names of the distributions whose own name is another.
_MODULES = {
    'opencv-python': 'cv2',
    'pillow': 'PIL',
    'pyyaml': 'yaml',
    'scikit-learn': 'sklearn',
}
# Owned by one of two distributions each, so that no list names them.
_FRAMEWORK = ('mmengine', 'mmcv', 'mmpretrain')
# Import name, what it is for, and the extra that installs it.
_OPTIONAL = (
    ('mmdet', 'detection', 'det'),
    ('mmseg', 'segmentation', 'seg'),
    ('pyarrow', 'parquet files of cmae embed', 'embed'),
    ('pydicom', 'DICOM files', 'dicom'),
    ('rasterio', 'masks and compressions of GeoTIFF files', 'geotiff'),
)
_GB = 2**30
_LEAST_SHARED_MEMORY, _LEAST_DISK = 1., 5.


class Library(NamedTuple):
    """How a library is found here.

    Args:
        version (str | None): None where it is not installed.
        needed (str): The versions that work; '' for any.
        problem (str): What is wrong; '' if nothing is.
        command (str): What repairs it; '' if nothing is to do.
    """

    version: Optional[str]
    needed: str = ''
    problem: str = ''
    command: str = ''


def examine() -> Result:
    """Look at libraries, devices and the machine.

    Works where libraries are missing or broken.

    Returns:
        Result: By name; ``problems`` are sentences on what keeps pre-training
        from running, ``warnings`` on what may hinder it, and ``exit_status``
        is 1 if there are problems.
    """
    problems: List[str] = []
    if sys.version_info < _LEAST_PYTHON:
        least = '.'.join(map(str, _LEAST_PYTHON))
        problems.append(f'Python {platform.python_version()} is too old, '
                        f'install {least} or newer')
    libraries = _examine_libraries()
    problems += _list_problems(libraries)
    if not problems:
        problems += _try_to_register()
    optional = {
        name: dict(_import(name)._asdict(), purpose=purpose,
                   command=dense_command(extra) if extra in ('det', 'seg')
                   else install_command(extra))
        for name, purpose, extra in _OPTIONAL
    }
    machine = _examine_machine()
    return dict(
        cmae_mm=__version__,
        folder=str(_PACKAGE),
        clone=in_clone(),
        python=platform.python_version(),
        platform=platform.platform(),
        libraries={k: v._asdict() for k, v in libraries.items()},
        optional=optional,
        operators=_examine_operators(),
        devices=_list_devices(),
        machine=machine,
        problems=problems,
        warnings=_warn(machine),
        exit_status=int(bool(problems)))


def _list_problems(libraries: Dict[str, Library]) -> List[str]:
    """Give a sentence for each command that repairs something."""
    repairs: Dict[str, Dict[str, List[str]]] = {}
    for name, found in libraries.items():
        if found.problem:
            wrong = repairs.setdefault(found.command, {})
            wrong.setdefault(found.problem, []).append(name)
    return [
        '; '.join(f'{", ".join(names)}: {problem}'
                  for problem, names in wrong.items()) +
        f'; repair it with `{command}`' for command, wrong in repairs.items()
    ]


def read_requirements() -> Dict[str, str]:
    """Read what every installation needs: version ranges by distribution."""
    try:
        lines = metadata.requires('cmae_mm') or []
    except metadata.PackageNotFoundError:
        config = configparser.ConfigParser()
        config.read(_PACKAGE.parent / 'setup.cfg')
        lines = config.get(
            'options', 'install_requires', fallback='').splitlines()
    found = {}
    for line in lines:
        match = re.match(r'([A-Za-z][\w.-]*)\s*([^;#]*)$', line.strip())
        if match:
            # the lower bound first, as in setup.cfg
            bounds = sorted(match[2].strip().split(','), reverse=True)
            found[match[1].lower()] = ','.join(bounds)
    return found


def _examine_libraries() -> Dict[str, Library]:
    found: Dict[str, Library] = {}
    for name, needed in read_requirements().items():
        library = _import(_MODULES.get(name, name), name)
        wrong = library.problem or _outside(library.version, needed)
        command = 'pip install torch torchvision' if name in (
            'torch', 'torchvision') else framework_command()
        found[name] = Library(
            library.version, needed, wrong, command if wrong else '')
    command = framework_command()
    for name in _FRAMEWORK:
        library = _import(name)
        needed = _framework_range(name)
        wrong = library.problem or _outside(library.version, needed)
        found[name] = Library(
            library.version, needed, wrong, command if wrong else '')
    return found


def _framework_range(name: str) -> str:
    return f'>={REQUIREMENTS[name].minimum},<{REQUIREMENTS[name].below}'


def _import(module: str, distribution: Optional[str] = None) -> Library:
    """Import a module, whatever comes of it."""
    version = None
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version(distribution or module)
    said = io.StringIO()
    try:
        if version is None and importlib.util.find_spec(module) is None:
            return Library(None, problem='not installed')
        with contextlib.redirect_stdout(said), \
                contextlib.redirect_stderr(said):
            imported = importlib.import_module(module)
    # A broken library raises all sorts of errors.
    except Exception as error:
        reason = ' '.join(str(error).split())
        return Library(version, problem='cannot be imported '
                       f'({type(error).__name__}: {reason})')
    return Library(version or getattr(imported, '__version__', None))


def _outside(version: Optional[str], needed: str) -> str:
    """Say that a version does not work; '' if it does."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return ''
    if version is None or SpecifierSet(needed).contains(version, True):
        return ''
    return f'{version} installed, needed is {needed}'


def _try_to_register() -> List[str]:
    """Do what every command begins with."""
    import cmae_mm
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), \
                contextlib.redirect_stderr(said):
            cmae_mm.register()
    except Exception as error:
        return [' '.join(str(error).split()) or type(error).__name__]
    return []


def _examine_operators() -> Dict[str, Any]:
    """Say whether mmcv's operators are there, for detection."""
    library = _import('mmcv.ops', 'mmcv')
    command = ''
    if library.problem:
        command = 'bash tools/install_ops.sh'
        with contextlib.suppress(ImportError, FileNotFoundError):
            from ..dependencies import ops_command
            command = ops_command()
    return dict(compiled=not library.problem, command=command)


def _list_devices() -> List[str]:
    try:
        import torch
        return [
            f'{torch.cuda.get_device_name(i)}, '
            f'{torch.cuda.get_device_properties(i).total_memory / _GB:.0f} GB'
            for i in range(torch.cuda.device_count())
        ]
    # of a broken torch, or of a driver that does not fit
    except Exception:
        return []


def _examine_machine() -> Dict[str, Any]:
    count = getattr(sys.modules.get('torch'), 'get_num_threads', None)
    shared = Path('/dev/shm')
    return dict(
        cores=cpu_count(),
        torch_threads=count() if count is not None else None,
        omp_num_threads=os.environ.get('OMP_NUM_THREADS'),
        memory_gb=_read_memory(),
        shared_memory_gb=_round(shutil.disk_usage(shared).total)
        if shared.is_dir() else None,
        disk_free_gb=_round(shutil.disk_usage('.').free))


def _round(size: float) -> float:
    return round(size / _GB, 1)


def _read_memory() -> Optional[float]:
    """Return the memory in GB: the machine's, or the container's share."""
    if not hasattr(os, 'sysconf'):  # on Windows
        return None
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    with contextlib.suppress(OSError, ValueError):
        limit = Path('/sys/fs/cgroup/memory.max').read_text()
        total = min(total, int(limit))
    return _round(total)


def _warn(machine: Dict[str, Any]) -> List[str]:
    warnings = []
    shared = machine['shared_memory_gb']
    if shared is not None and shared < _LEAST_SHARED_MEMORY:
        warnings.append(
            f'/dev/shm has {shared} GB, through which data workers hand over '
            'batches: start a container with --shm-size=8g, or train with '
            '--num-workers 0')
    if machine['disk_free_gb'] < _LEAST_DISK:
        warnings.append(
            f'the disk has {machine["disk_free_gb"]} GB left: a checkpoint of '
            'ViT-B takes 1.5 GB, and three are kept')
    return warnings


def doctor(args: argparse.Namespace) -> Result:
    """Look, and say it to people."""
    found = examine()
    where = 'a clone' if found['clone'] else 'installed'
    print(f'cmae_mm {found["cmae_mm"]} in {found["folder"]}, {where}')
    print(f'Python {found["python"]} on {found["platform"]}')
    print()
    for name, library in found['libraries'].items():
        print(f'  {name:<16} {library["version"] or "-":<12} '
              f'{library["problem"] or "ok"}')
    for name, library in found['optional'].items():
        state = 'ok' if not library['problem'] else (
            f'{library["problem"]}; for {library["purpose"]}: '
            f'{library["command"]}')
        print(f'  {name:<16} {library["version"] or "-":<12} {state}')
    operators = found['operators']
    state = 'ok' if operators['compiled'] else (
        'not compiled; for detection and segmentation: '
        f'{operators["command"]}')
    print(f'  {"mmcv operators":<16} {"":<12} {state}')
    print()
    print('  devices         ', '; '.join(found['devices']) or
          'no GPU: training runs on the CPU')
    machine = found['machine']
    print(f'  processor        {machine["cores"]} cores, '
          f'{machine["torch_threads"] or "no"} threads of torch, '
          f'OMP_NUM_THREADS={machine["omp_num_threads"] or ""}')
    print(f'  memory           {machine["memory_gb"] or "?"} GB, '
          f'{machine["shared_memory_gb"] or 0} GB shared; disk here '
          f'{machine["disk_free_gb"]} GB free')
    print()
    for kind in ('warnings', 'problems'):
        for sentence in found[kind]:
            print(f'{kind[:-1]}: {sentence}')
    print('pre-training cannot run here' if found['problems'] else
          'pre-training can run here')
    return found


COMMANDS = [
    Command(
        name='doctor',
        help='say what this machine has, and what is missing',
        example='cmae doctor\ncmae doctor --json',
        description='Versions, devices, operators, memory, and the command '
        'that installs what is missing. The exit status is 0 if pre-training '
        'can run here, and 1 otherwise.',
        add_arguments=lambda parser: None,
        run=doctor,
        registers=False),
]
