"""Killed at any moment and started again: bitwise as if never killed."""
import ast
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT

CASES = ['within_epochs', 'without_epochs', 'fine_tuning', 'two_ranks']
# What a clock or the machine's memory decides.
MEASURED = ('time', 'data_time', 'memory', 'health/data_wait',
            'health/images_per_second', 'health/hours_left',
            'health/host_memory_mb', 'health/device_memory_mb')


def env(**more):
    return {
        **os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]), **more
    }


@pytest.fixture(scope='module')
def runs(image_root, tmp_path_factory):
    """All cases, trained alone and killed, in one process's children."""
    out = tmp_path_factory.mktemp('runs')
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/restarts.py', image_root, out],
        env=env(), capture_output=True, text=True, timeout=600)
    said = ''.join(p.read_text()[-3000:] for p in out.rglob('killed.*.txt'))
    assert done.returncode == 0, done.stderr[-3000:] + said
    return out


def last_checkpoint(folder: Path) -> dict:
    path = max(folder.glob('*.pth'), key=lambda p: p.stat().st_mtime_ns)
    return torch.load(path, map_location='cpu', weights_only=False)


def differences(a, b, where=''):
    """List where two nested structures differ, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f'{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}'
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            yield f'{where}: {len(a)} and {len(b)} items'
        for i, pair in enumerate(zip(a, b)):
            yield from differences(*pair, f'{where}.{i}')
    elif isinstance(a, torch.Tensor):
        if not torch.equal(a, b) or a.dtype != b.dtype:
            yield f'{where}: by {(a.double() - b.double()).abs().max():g}'
    elif a != b:
        yield f'{where}: {a!r} and {b!r}'


def logged(folder: Path):
    """Yield all rows of all starts of a run."""
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # killed while it was written
                continue
            # nan is not equal to itself, but its text is.
            yield {k: 'nan' if v != v else v
                   for k, v in row.items() if k not in MEASURED}


def check_equal(alone: Path, killed: Path) -> int:
    """Compare everything; returns how many log rows were compared."""
    expected, got = last_checkpoint(alone), last_checkpoint(killed)
    assert got['meta']['iter'] == expected['meta']['iter']
    assert got['meta']['epoch'] == expected['meta']['epoch']
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'online_probe'):
        found = list(differences(expected.get(part), got.get(part), part))
        assert not found, found[:10]
    rows = {}
    for row in logged(alone):
        rows[row['step'], 'loss' in row, tuple(sorted(row))] = row
    count = 0
    for row in logged(killed):
        assert row == rows[row['step'], 'loss' in row, tuple(sorted(row))]
        count += 1
    return count


@pytest.mark.parametrize('case', CASES)
def test_a_killed_run_ends_as_one_left_alone(runs, case):
    folder = runs / case
    moments, starts = map(
        ast.literal_eval, (folder / 'starts.txt').read_text().splitlines())
    # Each start went on from a checkpoint not far before it was killed, and
    # most are in the middle of an epoch.
    assert starts[0] == 0 and all(
        moment - 12 < began <= moment + 1
        for moment, began in zip(moments, starts[1:])), (moments, starts)
    steps = check_equal(folder / 'alone', folder / 'killed')
    assert steps >= moments[-1]


def test_draws_of_a_run_vary(runs):
    """Equal runs prove nothing if each step draws the same."""
    rows = [r for r in logged(runs / 'without_epochs/alone') if 'loss' in r]
    assert len({r['loss_rc'] for r in rows}) > 50


def test_all_ranks_skip_a_step_that_one_rank_skips(runs):
    rows = [r for r in logged(runs / 'two_ranks/alone') if 'loss' in r]
    assert rows[-1]['skipped_steps'] == 5  # once an epoch
    state = last_checkpoint(runs / 'two_ranks/alone')['state_dict']
    assert state['target.steps'] == 15 - 5
    assert all(v.isfinite().all() for v in state.values())


def test_command_resumes_after_a_kill(image_root, runs, tmp_path):
    """The real command, killed at a random moment and given again."""
    from restarts import without_epochs
    moment = random.Random(0).randrange(12, 50)
    config = tmp_path / 'config.py'
    without_epochs(image_root, tmp_path / 'work').dump(config)
    command = [sys.executable, ROOT / 'tools/train.py', config]
    with subprocess.Popen(
            command, cwd=ROOT, env=env(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            if f'Iter(train) [{moment}/60]' in line:
                time.sleep(0.01)
                process.kill()
    assert process.returncode == -9
    done = subprocess.run(
        command, cwd=ROOT, env=env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert 'Iter(train) [1/60]' not in said and '[60/60]' in said
    assert '-1 day' not in said
    assert check_equal(runs / 'without_epochs/alone', tmp_path / 'work') >= 60
