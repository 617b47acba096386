"""The first-steps example and its notebook."""
import os
import subprocess
import sys

import pytest
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
    assert (tmp_path / 'classifier/best.pth').is_file()


def test_notebook_is_the_script_without_outputs():
    jupytext = pytest.importorskip('jupytext')
    script, notebook = (jupytext.read(ROOT / f'examples/first_steps.{ending}')
                        for ending in ('py', 'ipynb'))
    assert [(c.cell_type, c.source) for c in script.cells] == [
        (c.cell_type, c.source) for c in notebook.cells]
    assert not any(c.get('outputs') for c in notebook.cells)
