"""`--log-to`, with the real libraries, offline."""
import sqlite3

import numpy as np
import pytest
from helpers import runner_cfg
from mmengine.config import Config
from tiny_training import AtIteration

from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.training import check_log_to, train
from cmae_mm.dependencies import MissingLibrary
from cmae_mm.engine import ResumableRunner
from cmae_mm.engine.vis_backends import add_log_backends


def logged(image_root, work_dir, name):
    """Train two steps, show a picture, and end the run."""
    cfg = runner_cfg(image_root, work_dir)
    add_log_backends(cfg, [name])
    runner = ResumableRunner.from_cfg(cfg)
    picture = np.full((8, 8, 3), 200, np.uint8)
    runner.register_hook(AtIteration(
        2, lambda r: r.visualizer.add_image('picture', picture, step=2)))
    runner.train()  # which ends by closing the back ends
    assert list(work_dir.glob('*/vis_data/scalars.json'))


def test_tensorboard(image_root, tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from tensorboard.backend.event_processing.event_accumulator import \
        EventAccumulator
    logged(image_root, tmp_path, 'tensorboard')
    events = EventAccumulator(str(next(tmp_path.glob('*/vis_data'))))
    events.Reload()
    names = events.Tags()['scalars']
    assert {'loss', 'loss_ct', 'health/positive_rank', 'health/grad/backbone'
            } <= set(names)
    assert [e.step for e in events.Scalars('loss')] == [1, 2]
    assert 'picture' in events.Tags()['images']


def test_wandb(image_root, tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='wandb is not installed')
    for name, value in dict(WANDB_MODE='offline', WANDB_SILENT='true',
                            WANDB_DATA_DIR=str(tmp_path / 'data'),
                            WANDB_CACHE_DIR=str(tmp_path / 'cache')).items():
        monkeypatch.setenv(name, value)
    summaries = []
    finish = wandb.Run.finish

    def note_and_finish(run, *args, **kwargs):
        summaries.append(dict(run.summary))
        assert run.config['train_dataloader']['batch_size'] == 4
        return finish(run, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, 'finish', note_and_finish)
    logged(image_root, tmp_path / 'work', 'wandb')
    assert summaries[0]['iter'] == 2
    assert {'loss_ct', 'health/positive_rank', 'picture'} <= set(summaries[0])
    file = next((tmp_path / 'work').glob('*/vis_data/wandb/*/run-*.wandb'))
    assert b'health/positive_rank' in file.read_bytes()
    # No file of the folder that one is in is uploaded.
    assert not list((tmp_path / 'work').rglob('*/code/*'))
    assert not list((tmp_path / 'data').rglob('*.py'))


def test_mlflow(image_root, tmp_path, monkeypatch):
    pytest.importorskip('mlflow', reason='mlflow is not installed')
    pytest.importorskip('sqlalchemy', reason='mlflow-skinny has no store')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    logged(image_root, tmp_path, 'mlflow')
    database = sqlite3.connect(tmp_path / 'mlflow.db')
    rows = database.execute('select key, step, value from metrics').fetchall()
    steps = [step for key, step, _ in rows if key == 'loss']
    assert sorted(steps) == [1, 2]
    assert any(key == 'health/grad/backbone' for key, _, _ in rows)
    assert list(tmp_path.glob('mlartifacts/*/artifacts/picture_000002.png'))
    params = dict(database.execute('select key, value from params').fetchall())
    assert params['train_dataloader.batch_size'] == '4'


def test_existing_backends_are_kept_once():
    for visualizer, kinds in (
            (None, ['LocalVisBackend', 'TensorboardVisBackend']),
            (dict(type='V', vis_backends=[
                dict(type='mmengine.LocalVisBackend'), dict(type='Mine')]),
             ['mmengine.LocalVisBackend', 'Mine', 'TensorboardVisBackend'])):
        cfg = Config(dict(visualizer=visualizer))
        for _ in range(2):
            add_log_backends(cfg, ['tensorboard', 'file'])
        assert [b['type'] for b in cfg.visualizer.vis_backends] == kinds
    cfg = Config(dict(a=1))
    add_log_backends(cfg, [])
    assert 'visualizer' not in cfg


def test_missing_log_library_raises_one_sentence(monkeypatch):
    with pytest.raises(ArgumentError, match="did you mean 'tensorboard'"):
        train('cmae_vit-s_300e', log_to=['tensorbord'])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(MissingLibrary, match=r'wandb.*\[logging\]'):
        check_log_to(['file', 'wandb'])
    check_log_to(['file'])
