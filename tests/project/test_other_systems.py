"""Systems without features that only Linux has."""
import os
import subprocess
import sys

import pytest
from helpers import ROOT, run_commands, write_images


@pytest.fixture(scope='module')
def said(tmp_path_factory):
    """Run commands where /proc is missing."""
    folder = tmp_path_factory.mktemp('system')
    (folder / 'sitecustomize.py').write_text(
        (ROOT / 'tests/other_system.py').read_text())
    for name in 'ab':
        write_images(folder / 'photos' / name, 4, size=64)
    lines = dict(
        doctor=['doctor'],
        stats=['stats', 'photos', '--num-workers', '0'],
        shards=['shards', 'photos', 'shards', '--num-workers', '1'],
        pretrain=['pretrain', 'photos', '--model', 'mini', '--epochs', '1',
                  '--batch-size', '4', '--num-workers', '1', '--out', 'out'],
        embed=['embed', 'photos', 'out/epoch_1.pth', '--out', 'features.npz',
               '--num-workers', '0'])
    answers = run_commands(
        *lines.values(), cwd=folder, PYTHONPATH=os.pathsep.join(
            [str(folder), str(ROOT)]))
    return dict(zip(lines, answers)), folder


@pytest.mark.parametrize('command, output', [
    ('doctor', None), ('stats', None), ('shards', 'shards'),
    ('pretrain', 'out/epoch_1.pth'), ('embed', 'features.npz')])
def test_commands_run_without_linux_features(said, command, output):
    answers, folder = said
    status, text = answers[command]
    assert status == 0 and 'Traceback' not in text, text
    assert output is None or (folder / output).exists()


@pytest.mark.parametrize('start, prefix', [
    ("sys.argv = ['cmae', '--help']\nfrom cmae_mm.cli.main import main", ''),
    ('import cmae_mm', 'ImportError: ')])
def test_windows_raises_one_sentence(start, prefix):
    done = subprocess.run(
        [sys.executable, '-c',
         f"import sys\nsys.modules['fcntl'] = None\n{start}"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(prefix) and 'needs Linux or macOS' in last
    assert prefix or 'Traceback' not in done.stderr


def test_libraries_are_quiet_at_import_where_mmcv_has_no_operators():
    """Whether their logger is there already or not."""
    code = """
import sys
sys.modules['mmcv.ops'] = None
if {early}:
    from mmengine.logging import MMLogger
    MMLogger.get_current_instance()
import cmae_mm
from mmengine.logging import print_log
print_log('a message', logger='current')
"""
    for early in (True, False):
        done = subprocess.run(
            [sys.executable, '-c', code.format(early=early)], cwd=ROOT,
            capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert 'NMS' not in said and 'MultiScale' not in said
        assert 'a message' in said
