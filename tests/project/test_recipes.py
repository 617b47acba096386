"""docs/recipes.md: every config, with the numbers of the configs."""
import re

import pytest
import yaml
from helpers import ROOT
from test_docs import expand

from cmae_mm.config import load_config

PAGE = (ROOT / 'docs/recipes.md').read_text()
METAFILE = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())
# Pre-training: configs, lengths, and batches of a process and in all.
ROWS = re.findall(
    r'^\| `(configs/\S+\.py)` \|.*\| ([\d, ]+) (epochs|steps) '
    r'\| (\d+), (\d+) \|', PAGE, re.M)
# Transfer, where no library beside mmpretrain is needed.
TRANSFER = [
    (paths, *figures)
    for cell, *figures in re.findall(
        r'^\| (`configs/(?:finetune|linear|lowshot|cifar10).*?) \| [^|]* '
        r'\| (\d+) epochs, (\d+) \|$', PAGE, re.M)
    for paths in re.findall(r'`(configs/\S+\.py)`', cell)
]


def test_every_config_is_on_the_page():
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob(
        '*.py') if '_base_' not in p.parts}
    named = {path for text in re.findall(r'`(configs/\S+\.py)`', PAGE)
             for path in expand(text)}
    assert named == configs


def test_every_pre_training_has_a_row():
    shown = [path for row in ROWS for path in expand(row[0])]
    assert len(set(shown)) == len(shown) >= 25
    assert {m['Config'] for m in METAFILE['Models']} <= set(shown)


@pytest.mark.parametrize('paths,lengths,unit,batch,whole', ROWS,
                         ids=[row[0] for row in ROWS])
def test_rows_match_their_configs(paths, lengths, unit, batch, whole):
    paths, lengths = expand(paths), lengths.split(', ')
    lengths = lengths * (len(paths) if len(lengths) == 1 else 1)
    assert len(lengths) == len(paths)
    for path, length in zip(paths, lengths):
        cfg = load_config(str(ROOT / path))
        key = dict(epochs='max_epochs', steps='max_iters')[unit]
        assert cfg.train_cfg[key] == int(length), path
        assert cfg.train_dataloader.batch_size == int(batch), path
        assert cfg.auto_scale_lr.base_batch_size == int(whole), path


@pytest.mark.parametrize('paths,epochs,batch', TRANSFER)
def test_transfer_rows_match_their_configs(paths, epochs, batch):
    for path in expand(paths):
        cfg = load_config(str(ROOT / path))
        assert cfg.train_cfg.max_epochs == int(epochs), path
        assert cfg.auto_scale_lr.base_batch_size == int(batch), path


def test_published_figures_are_those_of_the_model_index():
    published = PAGE[PAGE.index('## Published results'):]
    assert len(TRANSFER) >= 6
    for model in METAFILE['Models']:
        for result in model['Results'] or []:
            (metric, figure), = result['Metrics'].items()
            assert 'published' in metric and str(figure) in published
