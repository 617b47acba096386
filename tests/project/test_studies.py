"""The studies that the project carries."""
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from cmae_mm.api.study_plan import read_study
from cmae_mm.config import load_config

STUDIES = sorted(ROOT.glob('studies/*.yaml'))


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_run_builds_a_model(path):
    study = read_study(str(path), Path('out'))
    seed = study.runs[0].seed
    for run in [run for run in study.runs if run.seed == seed]:
        # Trained or not, evaluations read the config with these options.
        command = run.steps[-1].command
        cfg = load_config(
            command[1], command[command.index('--cfg-options') + 1:])
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg.model)
        if cfg.model.type == 'CMAE':  # and not a neighbour
            assert (model.target is None) == (
                cfg.model.head.contrastive is None), run.name


def test_what_the_page_shows_can_be_read(tmp_path):
    page = (ROOT / 'docs/study.md').read_text()
    shown = page.split('```yaml\n')[1].split('```')[0]
    (tmp_path / 'shown.yaml').write_text(shown)
    study = read_study(str(tmp_path / 'shown.yaml'), tmp_path)
    assert len(study.runs) == 3 * len(study.names) == 15
