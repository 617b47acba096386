"""The first-steps example and its notebook."""
import os
import subprocess
import sys

from helpers import ROOT


def test_example_runs_to_its_end(tmp_path):
    done = subprocess.run(
        [sys.executable, 'examples/first_steps.py'], cwd=ROOT,
        capture_output=True, text=True,
        env=dict(os.environ, EPOCHS='1', TILES='100', OUT=str(tmp_path)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'accuracy by features' in done.stdout
    pictures = {p.name for p in tmp_path.glob('*.png')}
    assert pictures == {'reconstruction.png', 'features.png', 'map.png'}
