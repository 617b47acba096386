"""The packaged studies."""
import csv
import math
import statistics
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, write_images
from mmengine.dataset import default_collate
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, MODELS

from cmae_mm.apis.pretraining import MODELS as MODELS_OF_PRETRAIN
from cmae_mm.apis.pretraining import choose_by_size
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


def test_the_rule_for_few_images_is_what_the_table_says():
    """Of batches and rates in studies/small.csv, the rule's is the best."""
    rows = {row['run']: row for row in csv.DictReader(
        (ROOT / 'studies/small.csv').read_text().splitlines())
        if row['seed'] == '0'}
    columns = ('knn', 'linear', 'low-shot 10')

    def mean(name):
        return statistics.mean(float(rows[name][c]) for c in columns)

    study = yaml.safe_load((ROOT / 'studies/small.yaml').read_text())
    cfg = load_config(study['config'])
    rule = choose_by_size(5_000)
    assert rule.name == 'small' and study['runs']['CMAE'] == {}
    assert cfg.train_dataloader.batch_size == rule.batch_size
    mini = load_config(MODELS_OF_PRETRAIN['mini'])
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        mini.optim_wrapper.optimizer.lr * math.sqrt(
            rule.batch_size / mini.auto_scale_lr.base_batch_size), rel=0.02)
    # The spread: the 95 % interval of a row.
    others = [name for name in rows if name.startswith(('batch', 'rate'))]
    assert others and all(mean('CMAE') > mean(name) - 1.3 for name in others)
    paper = "the paper's rate and momentum"
    assert all(float(rows['CMAE'][c]) > float(rows[paper][c])
               for c in columns)


def test_the_rule_is_ahead_at_equal_time():
    """Of MAE and MoCo v3, by more than both standard deviations.

    By a linear layer MAE is within them.
    """
    rows = list(csv.DictReader(
        (ROOT / 'studies/small.csv').read_text().splitlines()))

    def scores(name, column):
        found = [float(r[column]) for r in rows if r['run'] == name]
        assert len(found) == 3
        return statistics.mean(found), statistics.stdev(found)

    chosen = "half of the target's patches, 1,430 steps"
    study = yaml.safe_load((ROOT / 'studies/small.yaml').read_text())
    options = study['runs'][chosen]['options']
    assert choose_by_size(5_000).target_mask_ratio == (
        options['model.target.mask_ratio'])
    for other in ('MAE, one view, 2,240 steps', 'MoCo v3'):
        for column in ('knn', 'linear', 'low-shot 10'):
            (mean, spread), (theirs, their_spread) = (
                scores(name, column) for name in (chosen, other))
            if (other, column) == ('MAE, one view, 2,240 steps', 'linear'):
                spread = their_spread = 0
            assert mean - theirs > spread + their_spread, (other, column)
