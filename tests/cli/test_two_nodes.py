"""Two machines: a launch of tools/dist_train.sh on each, one rank each.

Where that is permitted the machines are two network namespaces, which reach
each other through a cable of their own alone.
"""
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import QUICK, ROOT, free_port, model_cfg, runner_cfg, write_images


def ip(*words) -> None:
    subprocess.run(['ip', *words], check=True, capture_output=True)


@pytest.fixture
def nodes():
    """What a launch on each node begins with, and both environments."""
    names = [f'cmae{os.getpid()}{letter}' for letter in 'ab']
    made = []
    try:
        for name in names:
            ip('netns', 'add', name)
            made.append(name)
        ip('link', 'add', 'cable0', 'netns', names[0], 'type', 'veth', 'peer',
           'name', 'cable1', 'netns', names[1])
        for number, name in enumerate(names):
            ip('-n', name, 'addr', 'add', f'10.99.0.{number + 1}/24', 'dev',
               f'cable{number}')
            for device in ('lo', f'cable{number}'):
                ip('-n', name, 'link', 'set', device, 'up')
        yield [(['ip', 'netns', 'exec', name],
                dict(MASTER_ADDR='10.99.0.1', PORT='29500',
                     GLOO_SOCKET_IFNAME=f'cable{number}'))
               for number, name in enumerate(names)]
    except (OSError, subprocess.CalledProcessError):
        there = dict(MASTER_ADDR='127.0.0.1', PORT=str(free_port()))
        yield [([], there), ([], there)]
    finally:
        for name in made:
            ip('netns', 'del', name)


def test_two_launches_train_as_one_job(nodes, tmp_path):
    """13 images: 7 on each, in batches of 4 and 3; 20 steps."""
    write_images(tmp_path / 'images', 13)
    cfg = runner_cfg(
        tmp_path / 'images', tmp_path / 'work', model_cfg(width=16, depth=1),
        **{'train_dataloader.drop_last': False,
           'train_dataloader.sampler.type': 'SeededSampler',
           'default_hooks.checkpoint.by_epoch': True,
           'default_hooks.checkpoint.interval': 10,
           'log_processor.by_epoch': True})
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10)
    cfg.custom_imports.imports = ['cmae_mm', 'run_ranks']
    cfg.custom_hooks.append(
        dict(type='Watch', out=str(tmp_path / 'seen_{}.json')))
    cfg.dump(tmp_path / 'config.py')
    paths = [os.path.dirname(sys.executable), os.environ['PATH']]
    environment = dict(
        os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', NNODES='2',
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        PATH=os.pathsep.join(paths))
    launches = [
        subprocess.Popen(
            [*begin, 'bash', 'tools/dist_train.sh',
             str(tmp_path / 'config.py'), '1'],
            cwd=ROOT, env={**environment, **more, 'NODE_RANK': str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number, (begin, more) in enumerate(nodes)]
    try:
        for launch in launches:
            out, _ = launch.communicate(timeout=300)
            assert launch.returncode == 0, out[-4000:]
    finally:
        for launch in launches:
            launch.kill()
    first, second = (json.loads((tmp_path / f'seen_{n}.json').read_text())
                     for n in range(2))
    assert first['steps'] == second['steps'] == 20
    assert first['target_steps'] == second['target_steps'] == 20
    assert first['target'] == second['target']
    assert first['parameters'] == second['parameters']
    assert len(first['images']) == len(second['images']) == 70
    # one of 13 is drawn twice, so that both have as many
    assert len({*first['images'][:7], *second['images'][:7]}) == 13
    assert (tmp_path / 'work/epoch_10.pth').exists()


@pytest.mark.parametrize('words, message', [
    (['dist_train.sh', QUICK], 'usage: tools/dist_train.sh CONFIG GPUS'),
    (['dist_train.sh', QUICK, 'two'], "must be 1 or more, but got 'two'"),
    (['dist_test.sh', QUICK, 'a.pth'], 'usage: tools/dist_test.sh CONFIG'),
    (['slurm_train.sh', 'gpu'], 'usage: tools/slurm_train.sh PARTITION'),
    (['slurm_train.sh', 'gpu', 'cmae', QUICK], 'srun was not found'),
])
def test_mistakes_of_a_launch_are_one_sentence(words, message):
    if 'srun' in message and shutil.which('srun'):
        pytest.skip('needs a machine without Slurm')
    script, *rest = words
    done = subprocess.run([ROOT / 'tools' / script, *rest], text=True,
                          capture_output=True)
    assert done.returncode in (1, 2)
    assert message in done.stderr and done.stderr.count('\n') == 1
