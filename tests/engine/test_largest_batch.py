"""The search for the largest batch, and mistakes."""
import pytest
import torch
from helpers import runner_cfg
from hypothesis import given
from hypothesis import strategies as st

from cmae_mm.apis.training import batch_size
from cmae_mm.config import ConfigError
from cmae_mm.engine.training_step import (MOST, BatchTrial, build_trial_step,
                                          largest_batch, time_steps)


@given(fitting=st.integers(0, 1 << 17), start=st.integers(1, 1 << 12))
def test_the_search_ends_at_a_batch_that_fits_and_its_double_not(
        fitting, start):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= fitting

    found = largest_batch(fits, start)
    assert len(set(tried)) == len(tried) < 20
    assert min(tried) >= 2 and max(tried) <= MOST
    if fitting < 2:
        assert found == 0 and tried[-1] == 2
    else:
        assert found in tried and found <= fitting
        # One more step up was tried and did not fit, or is not allowed.
        assert 2 * found > MOST or any(found < n <= 2 * found + 1
                                       for n in tried)


def test_trial_needs_the_memory_of_training(image_root, tmp_path, monkeypatch):
    """Accumulated gradients, AdamW's state and a target that has moved."""
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    cfg = runner_cfg(image_root, tmp_path, **{
        'optim_wrapper.accumulative_counts': 8})
    cfg.activation_checkpointing = True
    device = torch.device('cpu')
    step = build_trial_step(cfg, device)
    assert time_steps(step, cfg, 4, device) > 0
    trained = [p for p in step.model.parameters() if p.requires_grad]
    state = step.wrapper.optimizer.state
    assert all('exp_avg_sq' in state[p] for p in trained)
    assert int(step.model.target.steps) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_cpu_raises_one_sentence(image_root, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(runner_cfg(image_root, tmp_path).pretty_text)
    with pytest.raises(ConfigError, match='needs a CUDA GPU.*halve train'):
        batch_size(path)


def test_config_without_pretraining_raises():
    with pytest.raises(ConfigError, match="a model of type 'ImageClassifier'"):
        batch_size('finetune/vit-b_pt300e_100e_in1k')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_memory_is_limited_and_freed(image_root, tmp_path):
    trial = BatchTrial(runner_cfg(image_root, tmp_path), 1.)
    size = largest_batch(trial.fits, 8)
    assert 2 <= size < MOST and 0 < trial.peak <= 1 and trial.rate > 0
    assert trial.fits(size) and not trial.fits(2 * size)
