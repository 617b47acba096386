"""Packages and their order of imports."""
import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT

# From the top: a room imports what stands below it, not what stands beside
# or above it. Rooms are the folders and the modules of cmae_mm.
LEVELS = (
    ('cli', ),
    ('apis', 'dense'),
    ('finetuning', ),
    ('engine', ),
    ('visualization', ),
    ('evaluation', ),
    ('models', 'checkpoints'),
    ('config', ),
    ('image_config', ),
    ('datasets', ),
    # What the package knows of itself and of the libraries below it.
    ('dependencies', 'version', 'progress', 'plain_config', 'files',
     'image_size'),
)
# What importing the package is: it gathers the rooms that it registers.
ENTRANCES = ('__init__', '__main__')
# Libraries that only one room may need.
LIBRARIES = {'mmdet': 'dense', 'mmseg': 'dense'}

LEVEL_OF = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
PACKAGE = ROOT / 'cmae_mm'


class Import(NamedTuple):
    """One imported name: where it is imported, by which room, and what."""

    place: str
    room: str
    module: str


def imports_of(path: Path, package: Path = PACKAGE,
               nested: bool = True) -> Iterator[Import]:
    """Yield all imports of a file, those inside of functions too."""
    inside = path.relative_to(package).with_suffix('').parts
    room = inside[0]
    # The packages that a relative import counts up from.
    parents = [package.name, *inside[:-1]]
    tree = ast.parse(path.read_text('utf-8'))
    for node in ast.walk(tree) if nested else tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        place = f'{path.relative_to(package.parent)}:{node.lineno}'
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(place, room, name.name)
        else:
            base = parents[:len(parents) - node.level + 1] if (
                node.level) else []
            module = '.'.join([*base, *filter(None, [node.module])])
            # `from .. import names` names modules, or what they hold.
            for name in node.names:
                yield Import(place, room, f'{module}.{name.name}')


def room_of(module: str, package: Path = PACKAGE) -> str:
    """Give the room that an import leads to, '' outside of the package."""
    first, *rest = module.split('.')
    if first != package.name:
        return ''
    # `from cmae_mm import register` leads to the entrance itself.
    return rest[0] if rest and rest[0] in LEVEL_OF else '__init__'


def fault_of(found: Import, package: Path = PACKAGE) -> str:
    """Say what is wrong with an import, '' if it is allowed."""
    library = found.module.split('.')[0]
    if found.room != LIBRARIES.get(library, found.room):
        return (f'{found.place}: only {LIBRARIES[library]} may import '
                f'{library}')
    room = room_of(found.module, package)
    if room in ('', found.room) or found.room in ENTRANCES:
        return ''
    if room == '__init__':  # registering all: commands and functions do it
        return '' if LEVEL_OF[found.room] < LEVEL_OF['engine'] else (
            f'{found.place}: {found.room} must not import the whole package')
    if LEVEL_OF[found.room] < LEVEL_OF[room]:
        return ''
    return f'{found.place}: {found.room} must not import {room}'


def test_no_room_imports_upwards_or_sideways():
    files = sorted(PACKAGE.rglob('*.py'))
    found = [i for path in files for i in imports_of(path)]
    faults = [fault for fault in map(fault_of, found) if fault]
    assert not faults, '\n'.join(faults)
    # The rooms are seen at all: each but the lowest imports another one.
    importing = {
        i.room for i in found if room_of(i.module) not in ('', i.room)
    }
    assert importing >= {'cli', 'dense', 'engine', 'models', 'evaluation',
                         'checkpoints'}


def test_no_cycles():
    """Between modules, also inside a room; those in functions aside."""
    names = {}
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        names['.'.join(p for p in parts if p != '__init__')] = path
    graph = {
        name: {found.module if found.module in names else
               found.module.rpartition('.')[0]
               for found in imports_of(path, nested=False)} & names.keys()
        for name, path in names.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError
    assert sum(map(len, graph.values())) > 100


def test_every_package_has_a_place_in_the_order():
    rooms = {
        path.stem for path in PACKAGE.iterdir()
        if path.suffix == '.py' or (path / '__init__.py').is_file()
    }
    assert rooms - set(ENTRANCES) <= set(LEVEL_OF)


@pytest.mark.parametrize(('file', 'source', 'faults'), [
    ('engine/a.py', 'from ..models import CMAE', 0),
    ('models/a.py', 'from ..engine.device import unwrapped_model', 1),
    ('models/a/b.py', 'def f():\n    from ...evaluation import knn', 1),
    ('evaluation/a.py', 'import cmae_mm.models.heads', 0),
    ('models/a.py', 'from ..checkpoints import load_encoder', 1),
    ('checkpoints/a.py', 'from .. import models', 1),
    ('checkpoints/a.py', 'import cmae_mm', 1),
    ('cli/a.py', 'def f():\n    import cmae_mm\n    cmae_mm.register()', 0),
    ('models/a.py', 'if True:\n    import mmdet', 1),
    ('dense/a/b.py', 'from mmdet.registry import HOOKS', 0),
    ('dense/a.py', 'from .checks import check_heads', 0),
    ('files.py', 'from .dependencies import REQUIREMENTS', 1),
    ('__init__.py', 'from . import engine, models', 0),
])
def test_imports_against_the_order_are_found(tmp_path, file, source, faults):
    path = tmp_path / 'cmae_mm' / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    package = tmp_path / 'cmae_mm'
    found = [fault_of(i, package) for i in imports_of(path, package)]
    assert sum(map(bool, found)) == faults
