"""The README's table of registered classes is the registries' content."""
import importlib
import re

import pytest
from helpers import ROOT, require_dense
from mmpretrain import registry

README = (ROOT / 'README.md').read_text()
# The table's rows, and the registries whose classes they list.
ROWS = {
    'models': ['MODELS'],
    'data sets, samplers': ['DATASETS', 'DATA_SAMPLERS'],
    'transforms': ['TRANSFORMS'],
    'hooks': ['HOOKS'],
    'runner, loops': ['RUNNERS', 'LOOPS'],
    'visualisation back ends': ['VISBACKENDS'],
    'optimizer wrappers, their constructors':
    ['OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS'],
}
DENSE = [('mmdet', 'cmae_mm.dense.detection'),
         ('mmseg', 'cmae_mm.dense.segmentation')]


def row(label):
    """Give the names in backticks of a row of the table."""
    found = re.findall(rf'^\| {re.escape(label)} \| (.*) \|$', README, re.M)
    assert len(found) == 1, f'the README has {len(found)} rows {label!r}'
    return re.findall(r'`(\w+)`', found[0])


def registered(registries, room='cmae_mm.'):
    """Give the names of our classes that registries hold themselves."""
    return [
        name for one in registries for name, kind in one.module_dict.items()
        if kind.__module__.startswith(room)
    ]


@pytest.mark.parametrize('label', ROWS)
def test_a_row_of_the_readme_is_what_is_registered(label):
    ours = registered(getattr(registry, name) for name in ROWS[label])
    assert sorted(row(label)) == sorted(ours)


def test_the_readme_has_a_row_for_every_registry_of_ours():
    listed = {name for names in ROWS.values() for name in names}
    others = [
        one for key, one in vars(registry).items()
        if key.isupper() and key not in listed
    ]
    assert len(others) > 5
    assert not registered(others)


@pytest.mark.ops
@pytest.mark.parametrize('library, room', DENSE)
def test_a_dense_row_of_the_readme_is_what_its_room_registers(library, room):
    require_dense(library)
    importlib.import_module(room)
    theirs = vars(importlib.import_module(f'{library}.registry'))
    ours = registered((one for key, one in theirs.items() if key.isupper()),
                      room)
    assert sorted(row(f'`{room}`')) == sorted(ours)
