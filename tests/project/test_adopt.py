"""What docs/adopt.md shows: its configs train, its table is complete."""
import importlib
import re
import subprocess
import sys

import pytest
from helpers import ROOT, require_dense, write_images
from mmpretrain import registry

PAGE = (ROOT / 'docs/adopt.md').read_text()
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

# Smaller and shorter, the same otherwise.
TINY = dict(
    train_cfg=dict(max_epochs=1),
    train_dataloader=dict(batch_size=2, num_workers=0),
    model=dict(
        backbone=dict(arch=dict(
            _delete_=True, embed_dims=24, num_layers=1, num_heads=2,
            feedforward_channels=48)),
        neck=dict(
            pixel_decoder=dict(
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
            feature_decoder=dict(
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
            projector=dict(hid_channels=16, out_channels=8)),
        head=dict(contrastive=dict(predictor=dict(hid_channels=16)))))
# A train.py as such a project has it.
TRAIN = f"""
from mmengine.config import Config
from mmengine.runner import Runner

for name in ('cmae', 'new_style'):
    cfg = Config.fromfile(f'configs/{{name}}.py')
    cfg.merge_from_dict({TINY!r})
    cfg.work_dir = cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert type(runner.model).__name__ == 'CMAE'
    assert runner.model.target.steps == 2, name
    print(name, 'trained')
"""


def test_the_pages_configs_train_in_another_project(tmp_path):
    blocks = re.findall(r'```python\n# (configs/\w+\.py)\n(.*?)```', PAGE,
                        re.S)
    assert [name for name, _ in blocks] == [
        'configs/runtime.py', 'configs/cmae.py', 'configs/new_style.py']
    (tmp_path / 'configs').mkdir()
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    (tmp_path / 'train.py').write_text(TRAIN)
    write_images(tmp_path / 'data/images', 4, size=64)
    done = subprocess.run(
        [sys.executable, 'train.py'], cwd=tmp_path, capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'cmae trained' in done.stdout
    assert 'new_style trained' in done.stdout


def row(label):
    """Give the names in backticks of a row of the table."""
    found = re.findall(rf'^\| {re.escape(label)} \| (.*) \|$', PAGE, re.M)
    assert len(found) == 1, f'the page has {len(found)} rows {label!r}'
    return re.findall(r'`(\w+)`', found[0])


def registered(registries, room='cmae_mm.'):
    """Give the names of our classes that registries hold themselves."""
    return [
        name for one in registries for name, kind in one.module_dict.items()
        if kind.__module__.startswith(room)
    ]


@pytest.mark.parametrize('label', ROWS)
def test_a_row_of_the_page_is_what_is_registered(label):
    ours = registered(getattr(registry, name) for name in ROWS[label])
    assert sorted(row(label)) == sorted(ours)


def test_the_page_has_a_row_for_every_registry_of_ours():
    listed = {name for names in ROWS.values() for name in names}
    others = [
        one for key, one in vars(registry).items()
        if key.isupper() and key not in listed
    ]
    assert len(others) > 5
    assert not registered(others)


@pytest.mark.ops
@pytest.mark.parametrize('library, room', DENSE)
def test_a_dense_row_of_the_page_is_what_its_room_registers(library, room):
    require_dense(library)
    importlib.import_module(room)
    theirs = vars(importlib.import_module(f'{library}.registry'))
    ours = registered((one for key, one in theirs.items() if key.isupper()),
                      room)
    assert sorted(row(f'`{room}`')) == sorted(ours)
