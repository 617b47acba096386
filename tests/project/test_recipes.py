"""docs/recipes.md: every config, with the figures of the configs."""
import re

import pytest
import yaml
from helpers import ROOT
from test_docs import expand

from cmae_mm.config import load_config

PAGE = (ROOT / 'docs/recipes.md').read_text()
METAFILE = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())
ROWS = re.findall(
    r'^\| `(configs/c?mae_\S+)\.py` \| (.*) \| (\d+) \| (\d+) '
    r'\| ([\d.]*) ?\|$', PAGE, re.M)


def test_every_config_is_on_the_page():
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob(
        '*.py') if '_base_' not in p.parts}
    named = {path for text in re.findall(r'`(configs/\S+\.py)`', PAGE)
             for path in expand(text)}
    assert named == configs


@pytest.mark.parametrize('config,what,epochs,batch,top1', ROWS,
                         ids=[row[0] for row in ROWS])
def test_a_row_is_what_the_config_says(config, what, epochs, batch, top1):
    cfg = load_config(f'{ROOT / config}.py')
    assert cfg.train_cfg.max_epochs == int(epochs)
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == 4096
    blocks = cfg.model.backbone.get('mask_block')
    ratio = cfg.model.backbone.mask_ratio
    assert (blocks, ratio) == ((1, 0.75) if 'mask75' in config or
                               '/mae_' in config else (2, 0.65))


def test_published_figures_are_the_model_index_s():
    assert len(ROWS) == len(list((ROOT / 'configs').glob('*.py')))
    shown = {config.split('/')[1]: top1 for config, _, _, _, top1 in ROWS}
    for model in METAFILE['Models']:
        for result in model['Results'] or []:
            figure, = result['Metrics'].values()
            assert float(shown[model['Name']]) == figure
            assert 'published' in next(iter(result['Metrics']))
