"""The packaged studies."""
from pathlib import Path

import pytest
from helpers import ROOT, write_images
from mmengine.dataset import default_collate
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, MODELS

from cmae_mm.apis.study import read_study
from cmae_mm.config import load_config

STUDIES = sorted(ROOT.glob('studies/*.yaml'))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    write_images(root / 'train/a', 2, size=80)
    return root


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_loader_has_a_batch(path, photos):
    study = read_study(str(path), Path('out'))
    seed = study.runs[0].seed
    # Set by RuntimeInfoHook, needed by mmpretrain's momentum encoders.
    MessageHub.get_current_instance().update_info('max_iters', 1)
    for run in [run for run in study.runs if run.seed == seed]:
        # Trained or not, evaluations read the config with these options.
        command = next(
            s for s in run.steps if s.name in ('knn', 'frozen')).command
        cfg = load_config(command[command.index('--config') + 1], [
            *command[command.index('--cfg-options') + 1:],
            f'train_dataloader.dataset.data_root={photos}'])
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(dict(
                cfg.model, data_preprocessor=cfg.data_preprocessor))
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
        if cfg.model.type == 'CMAE':  # and not a neighbour
            assert (model.target is None) == (
                cfg.model.head.contrastive is None), run.name
        _make_step(run.name, model.train(), dataset)


def _make_step(name, model, dataset):
    batch = default_collate([dataset[i] for i in range(2)])
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite(), name
    gradients = [p.grad for p in model.backbone.parameters()
                 if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients), name
    assert any(g.abs().sum() > 0 for g in gradients), name


def test_code_on_the_page_parses(tmp_path):
    page = (ROOT / 'docs/study.md').read_text()
    shown = page.split('```yaml\n')[1].split('```')[0]
    (tmp_path / 'shown.yaml').write_text(shown)
    study = read_study(str(tmp_path / 'shown.yaml'), tmp_path)
    assert len(study.runs) == 3 * len(study.names) == 15
