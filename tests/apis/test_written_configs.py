"""Configs that commands write: they train again, and no input is changed."""
import os
import shutil
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

import cmae_mm
from cmae_mm.cli.main import main
from cmae_mm.files import OutputInUse, output_lock

ODD = (b"{{fileDirname}} {{$HOME:y}} {{$NO:}} {{_base_.x}} '\"\\ \n\r,["
       b'\xe2\x80\xa8')


def run_here(*words) -> int:
    MMLogger._instance_dict.clear()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code or 0


def test_odd_names_survive_writing_and_reading(
        photos, smaller, tmp_path, safe_process, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b'/d\xff' + ODD))
    shutil.copytree(photos, data)
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b'/o' + ODD))
    options = dict(epochs=1, batch_size=4, num_workers=0, out=out,
                   cfg_options=smaller)
    done = cmae_mm.pretrain(data, 'mini', **options)
    again = cmae_mm.pretrain(data, 'mini', **options)  # compares equal
    assert again == done
    before = done.config.read_bytes()
    assert run_here('train', done.config, '--work-dir', tmp_path / 'w') == 0
    assert (tmp_path / 'w/epoch_1.pth').is_file()
    # Its own folder, also by another spelling: the config is kept.
    (tmp_path / 'link').symlink_to(out)
    for folder in (out, tmp_path / 'link/.'):
        assert run_here('train', done.config, '--resume', '--work-dir', folder,
                        '--cfg-options', 'optim_wrapper.optimizer.eps=1e-7'
                        ) == 0
        assert done.config.read_bytes() == before
    assert '1e-07' in (out / 'config_used.py').read_text()
    with pytest.raises(ValueError, match='is not UTF-8'):
        cmae_mm.pretrain(data, 'mini', **dict(
            options, out=os.fsdecode(os.fsencode(tmp_path) + b'/\xff')))


def test_a_folder_has_one_training_at_a_time(
        pretrained, photos, smaller, tmp_path, capsys, safe_process,
        monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    with output_lock(tmp_path / 'w', is_folder=True):
        with pytest.raises(OutputInUse, match=f'by process {os.getpid()} on'):
            cmae_mm.pretrain(photos, 'mini', epochs=1, batch_size=4,
                             num_workers=0, out=tmp_path / 'w',
                             cfg_options=smaller)
        assert run_here('train', pretrained.config, '--work-dir',
                        tmp_path / 'w') == 1
        assert f'by process {os.getpid()} on' in capsys.readouterr().err
        assert os.listdir(tmp_path / 'w') == ['.lock']
    assert not (tmp_path / 'w').exists()


def test_output_over_an_input_raises(
        pretrained, photos, tmp_path, capsys, safe_process):
    photo = tmp_path / 'photo.png'
    shutil.copy(photos / 'a/000.jpg', photo)
    before = photo.read_bytes()
    (tmp_path / 'link.png').symlink_to(photo)
    for out in (photo, tmp_path / 'link.png'):
        for images in (photo, tmp_path):
            assert run_here('attention', pretrained.checkpoint, images,
                            '--out', out) == 1
            assert 'would be overwritten' in capsys.readouterr().err
    assert photo.read_bytes() == before
