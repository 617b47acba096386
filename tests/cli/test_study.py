"""Studies: several trainings with several seeds."""
import csv
import json
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers import CLASSIFIER, ROOT, run_commands, run_tool
from mmengine.config import Config
from mmpretrain.registry import MODELS

from cmae_mm.apis.study import folder_name, read_study
from cmae_mm.apis.study import study as run_study
from cmae_mm.config import ConfigError
from cmae_mm.visualization.study_results import write_results

CONFIG = 'configs/quickstart/cmae_vit-mini_tiles.py'


def write_study(path, **content):
    content = {'config': CONFIG, 'runs': {'CMAE': None}, **content}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def small_study(folder, image_root, iterations=2):
    return write_study(
        folder / 'small.yaml', title='a small one', seeds=[3],
        evaluate={'knn': ['--ks', 1, '--num-workers', 0]},
        options={
            'train_dataloader.dataset.data_root': str(image_root),
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_iters': iterations,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1},
        runs={'MAE, no contrast': {
            'options': {'model.head.contrastive': None}},
            'random weights': {'checkpoint': 'random'}})


def test_stopped_study_resumes(image_root, tmp_path):
    """Training is told to end, and made to its end by the next call."""
    study = small_study(tmp_path, image_root, iterations=40)
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'cmae_mm', 'study', study, '--out',
               str(out)]
    trained = out / 'mae_no_contrast/seed3/train'
    with open(tmp_path / 'said.txt', 'w') as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said,
                                   stderr=said)
        deadline = time.monotonic() + 120
        while not list(trained.glob('iter_*.pth')):
            assert process.poll() is None, (tmp_path / 'said.txt').read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert 'the same command continues' in (tmp_path / 'said.txt').read_text()
    assert not trained.with_name('train.json').exists()
    assert len(list(trained.glob('2*'))) == 1

    said = run_tool('cmae', 'study', study, '--out', out, '--json')
    assert len(list(trained.glob('2*'))) == 2
    log = (trained.parent / 'output.txt').read_text()
    assert 'resumed' in log.lower()
    for words in ('OneDL', 'Line NMS'):  # of libraries at import
        assert words not in said + (tmp_path / 'said.txt').read_text()
    result = json.loads(next(
        line for line in said.splitlines() if line.startswith('{"out')))
    assert result['failed'] == [] and result['done'] == 2
    knn = json.loads(
        (out / 'random_weights/seed3/knn.json').read_text())['result']['top1']
    assert result['rows']['random weights']['knn'] == [knn, 0., 1]
    assert 'loss_rc' in result['rows']['MAE, no contrast']
    assert 'loss_ct' not in result['rows']['MAE, no contrast']
    assert f'| random weights | 1 | - | - | - | {knn:.1f} |' in said
    for name in ('results.csv', 'results.md', 'scores.png'):
        assert (out / name).stat().st_size > 50
    # A setting changed, and a run that fails.
    write_study(tmp_path / 'wrong.yaml', seeds=[0],
                runs={'wrong': {'checkpoint': study}})
    file = tmp_path / 'small.yaml'
    file.write_text(file.read_text().replace('max_iters: 40',
                                             'max_iters: 41'))
    (first, said), (second, failed) = run_commands(
        ['study', study, '--out', str(out)],
        ['study', str(tmp_path / 'wrong.yaml'), '--out',
         str(tmp_path / 'other')])
    assert first == second == 1
    assert 'has results of other settings (train_cfg.max_iters=40' in said
    assert 'wrong, seed 0 failed (cmae knn: ' in failed
    assert 'other/wrong/seed0/output.txt' in failed


def test_fine_tuning_of_random_weights(image_root, tmp_path):
    """Its data and sizes are those of the config with the run's options."""
    study = write_study(
        tmp_path / 'x.yaml', seeds=[3], evaluate=[],
        options={'train_dataloader.dataset.data_root': str(image_root),
                 'model.backbone.img_size': 32},
        finetune={'few': ['--labels-per-class', 1, '--epochs', 1,
                          '--num-workers', 0]},
        runs={'random': {'checkpoint': 'random'}})
    out = tmp_path / 'out'
    said = run_tool('cmae', 'study', study, '--out', out, '--json')
    tuned = out / 'random/seed3/few'
    assert Config.fromfile(tuned / 'config.py').model.backbone.img_size == 32
    metrics = json.loads((tuned / 'metrics.json').read_text())
    assert metrics['seed'] == 3 and metrics['encoder'] == 'random'
    result = json.loads(next(
        line for line in said.splitlines() if line.startswith('{"out')))
    assert result['rows']['random']['few'] == [
        metrics.get('test', metrics['val'])['accuracy'], 0., 1]
    with pytest.raises(ConfigError, match='other settings .*img_size=48'):
        run_study(write_study(
            tmp_path / 'x.yaml', **dict(
                yaml.safe_load((tmp_path / 'x.yaml').read_text()), options={
                    'model.backbone.img_size': 48})), out=out)


def test_tables_have_means_and_spreads(tmp_path):
    values = {'CMAE': [70., 71.5, 76.], 'random': [60., 61.]}
    study = read_study(write_study(
        tmp_path / 'x.yaml', seeds=[0, 1, 2], evaluate=['knn', 'low-shot'],
        runs={'CMAE': {'checkpoint': 'a.pth'},
              'random': {'checkpoint': 'random'}}), tmp_path)
    for run in study.runs:
        known = values[run.name]
        if run.seed < len(known):
            knn, few = (step.done for step in run.steps)
            knn.parent.mkdir(parents=True)
            knn.write_text(json.dumps(dict(
                command=['knn'], result=dict(top1=known[run.seed]))))
            few.write_text(json.dumps(dict(
                command=['low-shot'],
                result={'1': 20., '1_std': 3., '1pct': 30.},
                made=dict(date='2024-02-01', commit='abc'))))
    results = write_results(study, tmp_path)
    assert results.summary['CMAE']['knn'] == (
        statistics.mean(values['CMAE']), statistics.stdev(values['CMAE']), 3)
    assert '| random | 2 | 60.5 +- 0.7 | 20.0 +- 0.0 | 30.0 +- 0.0 |' in (
        results.table)
    rows = list(csv.reader(
        (tmp_path / 'results.csv').read_text().splitlines()))
    assert rows[0] == ['run', 'seed', 'knn', 'low-shot 1', 'low-shot 1pct',
                       'date', 'commit', 'machine']
    assert ['CMAE', '1', '71.5', '20.0', '30.0', '2024-02-01', 'abc', ''
            ] in rows and len(rows) == 6


def test_fine_tuning_from_a_checkpoint_and_from_random_weights(
        image_root, tmp_path):
    def images(split):
        return dict(
            batch_size=8, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='CustomDataset', data_root=str(image_root),
                data_prefix=split,
                pipeline=[dict(type='LoadImageFromFile'),
                          dict(type='Resize', scale=(32, 32)),
                          dict(type='PackInputs')]))

    Config(dict(
        default_scope='mmpretrain', model=CLASSIFIER,
        train_dataloader=images('train'), val_dataloader=images('val'),
        train_cfg=dict(by_epoch=True, max_epochs=1), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)))).dump(
            str(tmp_path / 'classify.py'))
    encoder = MODELS.build(CLASSIFIER['backbone'])
    torch.save({f'backbone.{k}': v for k, v in encoder.state_dict().items()},
               tmp_path / 'encoder.pth')
    path = tmp_path / 'x.yaml'
    path.write_text(yaml.safe_dump(dict(
        seeds=[0, 1], evaluate=[],
        transfer={'Tuned': dict(
            config=str(tmp_path / 'classify.py'),
            options={'model.backbone.init_cfg.type': 'Pretrained'})},
        runs={'random': dict(checkpoint='random'),
              'pre-trained': dict(checkpoint=str(tmp_path / 'encoder.pth'))}
    ), sort_keys=False))
    study = read_study(str(path), tmp_path / 'out')
    assert [(r.name, r.seed, len(r.steps)) for r in study.runs] == [
        ('random', 0, 1), ('pre-trained', 0, 1), ('random', 1, 1),
        ('pre-trained', 1, 1)]
    # The other seed as a longer log: 20 losses, then a validation.
    step = study.runs[3].steps[0]
    log = step.folder / 'a/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(
        json.dumps(row) + '\n' for row in [
            *(dict(loss=20. - n, step=n, iter=n, epoch=1, time=1.)
              for n in range(1, 21)),
            {'step': 1, 'accuracy/top1': 60., 'data_time': 1., 'time': 1.}]))
    step.done.write_text(json.dumps(dict(command=step.command, result={})))
    said = run_tool('cmae', 'study', path, '--out', tmp_path / 'out',
                    '--only', 'pre-trained', '--json')
    assert 'keys matched' in (
        study.runs[1].folder / 'output.txt').read_text()
    rows = [json.loads(line) for line in next(
        study.runs[1].steps[0].folder.glob('*/vis_data/scalars.json')
    ).read_text().splitlines()]
    loss = rows[-2]['loss']  # 3 iterations: the last one alone
    result = json.loads(next(
        line for line in said.splitlines() if line.startswith('{"out')))
    found = result['rows']['pre-trained']
    assert set(found) == {'tuned loss', 'tuned top1'}
    assert found['tuned loss'] == pytest.approx([
        (loss + .5) / 2, statistics.stdev([loss, .5]), 2])
    assert found['tuned top1'] == pytest.approx([
        (rows[-1]['accuracy/top1'] + 60) / 2,
        statistics.stdev([rows[-1]['accuracy/top1'], 60]), 2])
    assert result['rows']['random'] == {}


@pytest.mark.parametrize('text,message', [
    ('runs:\n  a: {}\n  a: {}\n', "two entries 'a' in one mapping"),
    ('[' * 5000, 'nested too deeply'),
    ('a: [', 'is not valid YAML'),
    ('\x00', 'is not valid YAML'),
    ('runs: 2026-01-01', 'runs must be a mapping'),
    ('- 1', 'must be a mapping with some of'),
])
def test_invalid_study_files_are_named(text, message, tmp_path):
    path = tmp_path / 'x.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_study(str(path), tmp_path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)
    path.write_bytes(b'title: \xff')
    with pytest.raises(ConfigError, match=f'{path} is not valid YAML'):
        read_study(str(path), tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    study = read_study(write_study(
        tmp_path / 'x.yaml', runs={'a': {'checkpoint': 'random'}}), tmp_path)
    step = study.runs[0].steps[0]
    step.done.parent.mkdir(parents=True)
    for text in ('{', '{}', '[]', 'null', '{"command": 1, "result": {}}'):
        step.done.write_text(text)
        with pytest.raises(ConfigError, match=f'{step.done} is damaged'):
            write_results(study, tmp_path)


@pytest.mark.parametrize('content,message', [
    (dict(run={}), 'has run, but the allowed keys are title, config'),
    (dict(runs={}), 'runs is empty'),
    (dict(runs=['a']), "runs must be a mapping, but got \\['a'\\]"),
    (dict(runs={'A 1': None, 'a_1': None}), 'have the same folder'),
    (dict(runs={'a': {'option': {}}}), 'runs.a has option, but the'),
    (dict(runs={'a': {'options': {'model': {'x': 1}}}}), 'with dots: model.'),
    (dict(options={'randomness.seed': 1}), 'seeds, not randomness.seed'),
    (dict(seeds=[0, 0]), 'list of different whole numbers'),
    (dict(seeds=3), 'seeds must be a list, but got 3'),
    (dict(seeds=[0, True]), 'list of different whole numbers'),
    (dict(evaluate=['kn']), 'must be a list of knn, linear, low-shot'),
    (dict(transfer={'tuned': {}}), 'transfer.tuned has no config'),
    (dict(transfer={'knn': {'config': CONFIG}}), 'choose another name'),
    (dict(transfer={'a b': {'config': CONFIG}, 'a-b': {'config': CONFIG}}),
     'choose another name'),
    (dict(transfer={'a': {'config': 3}}), 'config must be text'),
    (dict(finetune={'a': '--frozen'}), 'finetune.a must be a list'),
    (dict(finetune={'knn': []}), 'finetune.knn: choose another name'),
    (dict(finetune={'a': []}, transfer={'A': {'config': CONFIG}}),
     'transfer.A: choose another name'),
    (dict(config=None), 'runs.CMAE has no config'),
    (dict(config=['a']), 'config must be text'),
    (dict(runs={'a': 3}), 'runs.a must be a mapping'),
    (dict(runs={'a': {'options': [1]}}), 'options must be a mapping'),
    (dict(evaluate=3), 'evaluate must be a list'),
    (dict(evaluate=[['knn']]), 'evaluate must be a list'),
    (dict(evaluate={'knn': 3}), 'evaluate must be a list'),
    (dict(evaluate=[], runs={'a': {'checkpoint': 'random'}}),
     'has no steps'),
])
def test_mistakes_of_the_file(content, message, tmp_path):
    path = write_study(tmp_path / 'x.yaml', **content)
    with pytest.raises(ConfigError, match=message):
        read_study(path, tmp_path)


def test_values_reach_the_command_line(tmp_path):
    study = read_study(write_study(
        tmp_path / 'x.yaml', options={'a.b': [1, 2.5], 'c': None},
        seeds=[7], finetune={'5 labels': ['--labels-per-class', 5]},
        transfer={'Fine-tuning': {
            'config': CONFIG, 'options': {'d': 'text'}}},
        runs={'one': {'options': {'c': True}}}), tmp_path)
    train, _, few, tuned = study.runs[0].steps
    assert few.name == '5 labels' and few.command == [
        'finetune', '{data}', '{checkpoint}', '--out',
        str(tmp_path / 'one/seed7/5_labels'), '--seed', '7',
        '--labels-per-class', '5']
    assert few.settings == [CONFIG, *train.command[6:]]
    assert train.command[5:] == [
        '--cfg-options', 'a.b=[1,2.5]', 'c=True', 'randomness.seed=7']
    assert tuned.name == 'fine_tuning' and tuned.command[6:] == [
        'model.backbone.init_cfg.checkpoint={checkpoint}', 'd=text',
        'randomness.seed=7']
    assert folder_name('MAE, 75 %') == 'mae_75'
