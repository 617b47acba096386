"""No command runs code from a file."""
import os
import subprocess
import sys

import payloads
import pytest
import yaml
from helpers import CLASSIFIER, ROOT, runner_cfg
from mmengine.config import Config
from mmengine.logging import MMLogger
from payloads import body, has_run, write_zip

from cmae_mm.cli.main import main


@pytest.fixture(scope='module')
def configs(image_root, tmp_path_factory):
    """Configs of a pre-training and of a classifier, as files."""
    folder = tmp_path_factory.mktemp('configs')
    pretrain = runner_cfg(image_root, folder / 'work')
    pretrain.dump(str(folder / 'pretrain.py'))
    (folder / 'data').write_text(str(image_root))
    images = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root=str(image_root),
            data_prefix='train',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(32, 32)),
                dict(type='PackInputs')
            ]))
    Config(
        dict(
            default_scope='mmpretrain',
            model=CLASSIFIER,
            train_dataloader=images,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)),
            test_dataloader=images,
            test_evaluator=dict(type='Accuracy', topk=(1, )),
            test_cfg=dict())).dump(str(folder / 'classify.py'))
    return folder


TRAIN, TEST = ['train', 'pretrain.py'], ['test', 'classify.py']
INIT = 'model.backbone.init_cfg.checkpoint=FILE'
PRETRAINED = 'model.backbone.init_cfg.type=Pretrained'
# The words after cmae; FILE, OUT and the configs are filled in.
COMMANDS = {
    'resume': [*TRAIN, '--resume', 'FILE'],
    'load_from': [*TRAIN, '--cfg-options', 'load_from=FILE', 'resume=False'],
    'init_cfg of pre-training': [
        *TRAIN, '--cfg-options', PRETRAINED, INIT, 'resume=False'],
    'init_cfg of fine-tuning': [
        'train', 'classify.py', '--cfg-options', PRETRAINED, INIT],
    'test': [*TEST, 'FILE'],
    'k-NN': ['knn', 'DATA', 'FILE'],
    'linear': ['linear', 'DATA', 'FILE', '--config', 'pretrain.py'],
    'few labels': ['low-shot', 'DATA', 'FILE'],
    'import': ['import', 'pretrain.py', 'FILE', 'OUT'],
    'export': ['export', 'pretrain.py', 'FILE', 'OUT', '--to', 'timm'],
    'export of all': ['export', 'pretrain.py', 'FILE', 'OUT', '--to', 'cmae'],
}


def fill(words, file, configs, work):
    names = {'FILE': str(file), 'OUT': str(work / 'out.pth'),
             'DATA': (configs / 'data').read_text()}
    filled = []
    for word in words:
        for name, value in names.items():
            word = word.replace(name, value)
        if word in ('pretrain.py', 'classify.py'):
            word = str(configs / word)
        filled.append(word)
    if filled[0] in ('train', 'test', 'knn', 'linear', 'low-shot'):
        filled += ['--work-dir', str(work)]
    return filled


def run_here(words, monkeypatch, capsys) -> str:
    """Run a command in this process; return its last output."""
    monkeypatch.chdir(ROOT)
    # sets the environment of distributed training for those after it
    monkeypatch.setenv('LOCAL_RANK', '0')
    # one of the same second's run before would write to that test's stream
    MMLogger._instance_dict.clear()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('kind', [payloads.system, payloads.chain])
def test_no_command_runs_a_file(name, kind, configs, marker, tmp_path,
                                safe_process, monkeypatch, capsys):
    file = tmp_path / 'stranger.pth'
    write_zip(file, body(kind(marker)))
    said = run_here(fill(COMMANDS[name], file, configs, tmp_path / 'work'),
                    monkeypatch, capsys)
    assert 'could run code' in said and 'stranger.pth' in said
    assert 'Traceback' not in said and not has_run(marker)


@pytest.mark.parametrize('kind', [payloads.system, payloads.chain])
def test_foreign_file_in_the_work_folder_is_not_run(
        kind, configs, marker, tmp_path, safe_process, monkeypatch, capsys):
    """Resuming by itself, as all pre-training configs do."""
    work = tmp_path / 'work'
    work.mkdir()
    write_zip(work / 'iter_1.pth', body(kind(marker)))
    (work / 'last_checkpoint').write_text(str(work / 'iter_1.pth'))
    said = run_here(fill([*TRAIN, '--resume'], '', configs, work),
                    monkeypatch, capsys)
    assert 'could run code' in said and not has_run(marker)


def test_as_a_user_runs_it(configs, marker, tmp_path):
    """In processes of their own, one that starts another one."""
    file = tmp_path / 'stranger.pth'
    write_zip(file, body(payloads.chain(marker)))
    study = tmp_path / 'study.yaml'
    study.write_text(yaml.safe_dump(dict(
        seeds=[0], evaluate=[], runs={'stranger': dict(checkpoint=str(file))},
        transfer=dict(tuned=dict(
            config=str(configs / 'classify.py'),
            options={'model.backbone.init_cfg.type': 'Pretrained',
                     'train_cfg.max_epochs': 1})))))
    for words in (COMMANDS['resume'],
                  ['study', str(study), '--out', str(tmp_path / 'study')]):
        done = subprocess.run(
            [sys.executable, '-m', 'cmae_mm',
             *fill(words, file, configs, tmp_path / 'work')],
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True)
        assert done.returncode != 0, done.stdout
        assert 'Traceback' not in done.stderr.split('UserWarning')[-1]
        assert not has_run(marker)
