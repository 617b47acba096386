"""Trying batch sizes: the search, the process that is watched, the command."""
import json
import os
import sys
import threading

import pytest
import torch
from helpers import runner_cfg
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import MMLogger

from cmae_mm.cli import batch_size as command
from cmae_mm.cli.main import parse
from cmae_mm.engine import batch_child, batch_trials
from cmae_mm.engine.batch_trials import (
    ChildTrials,
    Trial,
    TrialError,
    build_trial_step,
    largest,
    search,
    time_steps,
)


@given(fitting=st.integers(0, 3000), most=st.integers(2, 2048))
def test_the_search_ends_within_a_sixteenth(fitting, most):
    trials = search(lambda n: Trial(n, n <= fitting), 2, most)
    sizes = [trial.batch_size for trial in trials]
    assert len(set(sizes)) == len(sizes) <= 18 and max(sizes) <= most
    found = largest(trials)
    if fitting < 2:
        assert found == 0 and sizes == [2]
    elif fitting >= most:
        assert found == most
    else:
        assert found <= fitting <= found + max(1, found // 16)


class InProcess:
    """Tries batch sizes here, where they have a budget of images."""

    def __init__(self, cfg, budget, checkpointing) -> None:
        self.cfg = cfg
        self.step = build_trial_step(cfg, torch.device('cpu'), checkpointing)

    def __call__(self, size):
        if size > 5:
            return Trial(size, False)
        rate = time_steps(self.step, self.cfg, size, torch.device('cpu'))
        return Trial(size, True, 0.5, rate)

    def close(self) -> None:
        self.step = None


@pytest.fixture
def config_file(image_root, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(runner_cfg(image_root, tmp_path).pretty_text)
    return str(path)


def test_the_command_compares_and_says_what_to_set(config_file, capsys,
                                                   monkeypatch):
    monkeypatch.setattr(batch_trials, 'ChildTrials', InProcess)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    args = parse(['batch-size', config_file, '--memory-limit', '0.5',
                  '--headroom', '0.2', '--activation-checkpointing',
                  '--cfg-options', 'optim_wrapper.accumulative_counts=16'])
    result = command.batch_size(args)
    assert result['budget_gib'] == pytest.approx(0.4)
    for setting in ('as_it_is', 'checkpointed'):
        trials = result[setting]['trials']
        assert [t['batch_size'] for t in trials] == [2, 4, 8, 6, 5]
        assert all(t['images_per_s'] > 0 for t in trials if t['fits'])
        assert result[setting]['largest'] == 5
    said = capsys.readouterr().out
    assert said.count('train_dataloader.batch_size=5') == 2
    assert 'batch_size=5 activation_checkpointing=True' in said


def test_a_trial_holds_what_a_training_holds(image_root, tmp_path, caplog):
    """Gradients that are accumulated, Adam's state, and a moved target."""
    cfg = runner_cfg(image_root, tmp_path, **{
        'optim_wrapper.accumulative_counts': 8})
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        step = build_trial_step(cfg, torch.device('cpu'), True)
        logger.info('the next')
    finally:
        logger.removeHandler(caplog.handler)
    # And no line on how each parameter was initialised.
    assert [r.getMessage() for r in caplog.records
            if r.levelname == 'INFO'] == ['the next']
    time_steps(step, cfg, 4, torch.device('cpu'))
    trained = [p for p in step.model.parameters() if p.requires_grad]
    state = step.wrapper.optimizer.state
    assert all('exp_avg_sq' in state[p] for p in trained)
    assert int(step.model.target.steps) == 2


def test_the_process_is_ended_when_it_takes_too_much(image_root, tmp_path):
    trials = ChildTrials(runner_cfg(image_root, tmp_path), 1 << 30, None)
    try:
        small, large = trials(2), trials(32)
        assert small.fits and large.fits
        assert 0 < small.peak_gib < large.peak_gib < 1
        assert large.images_per_s > 0
        pid = trials._child.pid
        trials.budget = 1 << 20
        assert trials(64) == Trial(64, False)
        assert trials._child is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        trials.close()


def test_a_process_that_fails_says_why(image_root, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    trials = ChildTrials(runner_cfg(image_root, tmp_path), 1 << 30, None)
    with pytest.raises(TrialError, match='ended with status 1: no word'):
        trials(2)


def test_steps_that_fail_for_another_reason_say_so(image_root, tmp_path,
                                                   monkeypatch):
    """The process's own code, here: a config of a model that is none."""
    cfg = runner_cfg(image_root, tmp_path)
    cfg.model.backbone.mask_ratio = 2.
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, 'argv', ['child', str(writer)])
    task = dict(config=cfg.pretty_text, checkpointing=None)
    monkeypatch.setattr(sys, 'stdin', open_lines(task, 2))
    batch_child.main()
    with os.fdopen(reader) as answers:
        base, failed = (json.loads(line) for line in answers)
    assert base['base'] > 0
    assert 'mask_ratio=2.0 keeps' in failed['error']


def open_lines(*values):
    """Give a file with a JSON line for each value."""
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, 'w') as file:
            for value in values:
                file.write(json.dumps(value) + '\n')

    threading.Thread(target=write).start()
    return os.fdopen(reader)


def test_a_config_of_no_pre_training_is_refused():
    with pytest.raises(ValueError, match="a model of type 'ImageClassifier'"):
        command.batch_size(parse(
            ['batch-size', 'finetune/vit-b_pt300e_100e_in1k']))
