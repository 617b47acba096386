"""The commands pretrain, embed and doctor."""
import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from helpers import ROOT, run_tool

import cmae_mm
from cmae_mm.apis import environment
from cmae_mm.cli import main as command
from cmae_mm.cli.main import main
from cmae_mm.dependencies import framework_command

# Several command lines in one process, which imports the libraries once.
RUN = """
import json, sys
from cmae_mm.cli.main import main
for line in json.loads(sys.argv[1]):
    try:
        main(line)
    except SystemExit as end:
        assert end.code == 0, end.code
"""


def test_from_a_folder_to_features_in_two_commands(photos, tmp_path):
    out, features = tmp_path / 'out', tmp_path / 'features.npz'
    lines = [
        ['pretrain', photos, '--model', 'mini', '--epochs', 1, '--batch-size',
         4, '--num-workers', 0, '--out', '~/out', '--json', '--cfg-options',
         'model.neck.projector.hid_channels=64'],
        ['embed', photos, '~/out', '--out=~/features.npz',
         '--num-workers', 0, '--json'],
    ]
    said = run_tool(sys.executable, '-c', RUN,
                    json.dumps([[str(x) for x in line] for line in lines]),
                    HOME=str(tmp_path))
    assert 'images         8 images in' in said
    assert 'batch          4 on 1 process(es): 2 steps an epoch' in said
    assert 'checkpoints    every 1 epoch(s), at most 1 kept' in said
    assert 'multiplied by' not in said  # the rate fits the batch
    trained, embedded = (json.loads(line) for line in said.splitlines()
                         if line.startswith('{'))
    assert trained == dict(checkpoint=str(out / 'epoch_1.pth'),
                           config=str(out / 'config.py'), out=str(out))
    assert embedded == dict(out=str(features), shape=[8, 128], skipped=0)
    with np.load(features) as written:
        assert written['features'].shape == (8, 128)


@pytest.mark.parametrize('line, said', [
    (['pretrain', 'none'], "none"),
    (['pretrain', '.', '--model', 'vit-g'], '--model: must be one of'),
    (['pretrain', '.', '--epochs', '0'], '--epochs: must be'),
    (['embed', '.', 'none.pth', '--out', 'f.npz'],
     'there is no checkpoint none.pth'),
    (['embed', '.', 'setup.cfg', '--out', 'f.txt'],
     'must be a .npz or .parquet'),
])
def test_a_mistake_is_found_before_the_libraries_are_loaded(
        line, said, monkeypatch, capsys):
    monkeypatch.setattr(command, 'load_libraries', None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code in (1, 2)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]
    assert told[0].startswith(f'cmae {line[0]}: ')


@pytest.mark.parametrize('pair, said', [
    ('model.backbone.mask_rato=0.5', "did you mean 'mask_ratio'"),
    ('trian_cfg.val_interval=1', "did you mean 'train_cfg'"),
    ('train_cfg.max_epochs=3', 'use the argument epochs'),
])
def test_invalid_override_ends_in_one_sentence(
        pair, said, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'load_libraries', lambda *which: None)
    monkeypatch.setattr('traceback.print_exc', None)  # is not called
    with pytest.raises(SystemExit) as end:
        main(['pretrain', str(photos), '--model', 'mini', '--out',
              str(tmp_path / 'out'), '--cfg-options', pair])
    assert end.value.code == 1
    told = capsys.readouterr().err.splitlines()
    assert said in told[-1] and told[-1].startswith('cmae pretrain: ')
    assert not (tmp_path / 'out/config.py').exists()


def test_doctor_finds_no_problem_here(capsys):
    found = environment.examine()
    assert found['problems'] == [] and found['exit_status'] == 0
    assert found['libraries']['torch']['version'] == (
        metadata.version('torch'))
    assert torch.__version__ in found['environment']['PyTorch']
    json.dumps(found, allow_nan=False)
    environment.doctor()
    assert 'pre-training can run here' in capsys.readouterr().out


def test_doctor_names_missing_packages_and_the_command(monkeypatch):
    real = metadata.version

    def version(name):
        if name == 'torchvision':
            raise metadata.PackageNotFoundError(name)
        return '0.1' if name == 'lmdb' or name.endswith(
            'mmpretrain') else real(name)

    monkeypatch.setattr(metadata, 'version', version)
    found = environment.examine()
    assert found['exit_status'] == 1 and len(found['problems']) == 3
    said = '\n'.join(found['problems'])
    assert ('torchvision is not installed, but cmae_mm needs <1,>=0.16; '
            'install it with `pip install torch torchvision`') in said
    assert 'lmdb 0.1, but cmae_mm needs >=1.4; install it with' in said
    assert 'mmpretrain 0.1, but cmae_mm needs' in said
    assert framework_command() in said


def test_doctor_names_a_broken_library(monkeypatch):
    def register():
        raise OSError('libcudart.so:\n cannot open shared object file')

    monkeypatch.setattr(cmae_mm, 'register', register)
    found = environment.examine()
    assert found['problems'] == [
        'libcudart.so: cannot open shared object file']
    assert found['exit_status'] == 1 and not found['environment']


def test_doctor_finds_conflicting_packages(monkeypatch):
    monkeypatch.setattr(environment, 'is_installed', {
        'mmengine', 'mmcv', 'mmcv-lite'}.__contains__)
    warnings = environment.examine()['warnings']
    assert warnings[0].startswith('mmcv and mmcv-lite overwrite each other')
    monkeypatch.setattr(environment, 'is_installed', {
        'onedl-mmengine', 'onedl-mmcv'}.__contains__)
    assert not any('overwrite' in w for w in environment.examine()['warnings'])


def test_doctor_works_without_libraries():
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'cmae_mm', 'doctor', '--json'],
        capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2] == 'pre-training cannot run here'
    problem, = json.loads(lines[-1])['problems']
    assert problem.startswith('packaging is not installed; install the requ')
    assert '`pip install -e ' in problem
