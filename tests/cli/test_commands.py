"""The command: help, start-up, exit status."""
import argparse
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest
from helpers import QUICK, ROOT, SMALL, run_commands, write_images

from cmae_mm.apis import conversion, evaluation
from cmae_mm.apis.arguments import RANDOM as RANDOM_WORD
from cmae_mm.checkpoints import EXPORTS
from cmae_mm.checkpoints.load import RANDOM
from cmae_mm.cli.main import COMMANDS, GROUPS, build_parser, parse
from cmae_mm.evaluation.probes import KS, LRS

ORDER = ['DATA', 'STUDY', 'FOLDER', 'CONFIG', 'CHECKPOINT', 'IMAGES', 'TRACE',
         'WORK_DIRS', 'OUT']
NAMES = list(COMMANDS)


def parser_of(name):
    action = next(a for a in build_parser()._actions
                  if isinstance(a, argparse._SubParsersAction))
    return action.choices[name]


@pytest.mark.parametrize('name', NAMES)
def test_examples_in_help_texts_parse(name):
    text = parser_of(name).format_help()
    assert text.startswith(f'usage: cmae {name} ')
    assert '(' not in text.partition('[OPTIONS]')[0]
    examples = [line.strip() for line in text.partition(
        '\nfor example:\n')[2].splitlines()]
    own = [line for line in examples if line.startswith('cmae ')]
    assert own
    for line in own:
        assert parse(shlex.split(line)[1:]).command == name


@pytest.mark.parametrize('name', NAMES)
def test_arguments_have_one_order_and_flags_one_spelling(name):
    actions = parser_of(name)._actions
    places = [ORDER.index(a.metavar) for a in actions if not a.option_strings]
    assert places == sorted(places)
    for flag in ('--json', '--debug'):
        assert [a.nargs for a in actions if flag in a.option_strings] == [0]
    for action in actions:
        for option in action.option_strings:
            # torch.distributed.launch passes it
            assert '_' not in option or option == '--local_rank'


def test_the_help_of_all_lists_each_command_once():
    text = build_parser().format_help()
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    for name in COMMANDS:
        assert name in grouped
        assert len(re.findall(rf'^  {name} +\S', text, re.M)) == 1
    for heading in GROUPS:
        assert f'\n{heading}:\n' in text


def test_defaults_in_help_match_the_libraries():
    assert set(get_args(conversion.Format)) == {
        'cmae', 'onnx', *EXPORTS}
    ks = inspect.signature(evaluation.knn).parameters['ks']
    assert ks.default == KS
    assert evaluation.LRS == LRS
    assert RANDOM_WORD == RANDOM


# A command line, its output, its exit status. None needs a library.
LIGHT = {
    'help': (['--help'], 'cmae COMMAND --help', 0),
    "a command's help": (['knn', '--help'], 'for example:', 0),
    'version': (['--version'], 'cmae_mm 0.', 0),
    'nothing': ([], 'usage: cmae COMMAND', 2),
    'a command that is none': (
        ['lineer'], "unknown command 'lineer'; did you mean 'linear'", 2),
    'an option that is none': (
        ['linear', '.', 'random', '--epoch', '3'],
        "cmae linear: unknown option --epoch; did you mean '--epochs'?", 2),
    'a part of an option': (
        ['linear', '.', 'random', '--epo', '3'], 'unknown option --epo', 2),
    'a choice that is none': (
        ['knn', '.', 'random', '--encoder', 'targt'],
        '--encoder: must be one of online, target, teacher, student, but '
        "got 'targt'; did you mean 'target'?", 2),
    'an unexpected argument': (
        ['train', QUICK, 'a.pth'], "unexpected argument 'a.pth'", 2),
    'one argument too few': (['knn', '.'], 'required: CHECKPOINT', 2),
    'no such config': (
        ['knn', '.', 'random', '--config', 'cmae_vit-b_400e'],
        "there is no file and no packaged config 'cmae_vit-b_400e'", 1),
    'a config in place of the data': (
        ['knn', QUICK, 'random'], 'DATA CHECKPOINT --config', 1),
    'random weights of no architecture': (
        ['knn', '.', 'random'], 'random weights need --config', 1),
    'no such checkpoint': (
        ['export', QUICK, 'none.pth', 'out.pth', '--to', 'timm'],
        'cmae export: there is no checkpoint none.pth', 1),
    'no random weights to export': (
        ['export', QUICK, 'random', 'out.pth', '--to', 'timm'],
        'there is no checkpoint random', 1),
    'no such folder': (
        ['store', 'none', 'out'],
        "cmae store: the data folder 'none' does not exist; name", 1),
    'a device as a folder': (
        ['map', os.devnull, 'setup.cfg'],
        f"the data folder '{os.devnull}' is not a folder or file", 1),
    'a broken override': (
        ['train', QUICK, '--cfg-options', 'lr'], 'takes KEY=VALUE', 1),
    'to resume and not': (
        ['train', QUICK, '--resume', '--no-resume'],
        'not allowed with argument --resume', 2),
    'an option of no use': (
        ['export', QUICK, 'setup.cfg', 'out.pth', '--to', 'cmae', '--encoder',
         'target'], 'remove --encoder and --img-size', 1),
    'metrics that are no JSON': (
        ['test', QUICK, 'setup.cfg', '--out', 'metrics.txt'],
        "the output must be a .json file, but got 'metrics.txt'", 1),
}


@pytest.fixture(scope='module')
def light():
    """Run all of them in one process; say what it had imported by then."""
    code = ('import json, sys\n'
            'sys.argv = ["cmae"]\n'
            'from run_commands import run_one\n'
            'done = [run_one(c) for c in json.load(sys.stdin)]\n'
            'heavy = {"torch", "numpy", "mmengine"} & set(sys.modules)\n'
            'print(json.dumps([done, sorted(heavy)]))')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
        input=json.dumps([command for command, _, _ in LIGHT.values()]),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), str(ROOT / 'tests')])}, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    results, heavy = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(LIGHT, results)), heavy


@pytest.mark.parametrize('name', LIGHT)
def test_help_loads_no_library(name, light):
    results, heavy = light
    _, said, status = LIGHT[name]
    code, output = results[name]
    assert not heavy
    assert code == status and said in output, output
    assert 'Traceback' not in output
    if status and name != 'nothing':
        assert len(output.strip().splitlines()) == 1


def test_it_works_from_any_folder(tmp_path):
    """From images to an exported and evaluated encoder, configs by name."""
    for split in ('train', 'val'):
        for c in range(2):
            write_images(tmp_path / f'data/{split}/class{c}', 6, seed=c)
    config, options = 'cmae_vit-mini_tiles', SMALL[1:]
    own = ['--cfg-options', options[-1]]
    commands = [
        ['store', 'data/train', 'train.lmdb', '--json'],
        ['splits', 'data', '--percent', '50', '--json'],
        ['train', config, '--cfg-options', *options, '--work-dir', 'out'],
        ['export', config, 'out/iter_2.pth', 'timm.safetensors', '--to',
         'timm', *own, '--json'],
        ['import', config, 'timm.safetensors', 'init.pth', *own, '--json'],
        ['knn', 'data', 'init.pth', '--ks', '3', '--num-workers', '0',
         '--config', config, *own, '--json'],
        ['low-shot', 'data', 'init.pth', '--shots', '1', '--splits',
         'data/splits/50pct_seed0.txt', '--num-workers', '0', '--json'],
    ]
    results = run_commands(
        *commands, cwd=tmp_path, DATA_ROOT=str(tmp_path / 'data'))
    for command, (code, output) in zip(commands, results):
        assert code == 0, (command, output[-3000:])
        assert 'Could not import OneDL' not in output
    said = [json.loads(output.strip().splitlines()[-1])
            for command, (_, output) in zip(commands, results)
            if '--json' in command]
    store, splits, exported, imported, knn, low_shot = said
    assert store['images'] == 12
    assert splits['files'] == {'data/splits/50pct_seed0.txt': 6}
    assert exported['to'] == 'timm'
    assert imported['kind'] == 'an MAE or timm encoder'
    assert knn['checkpoint'] == 'init.pth' and 0 <= knn['top1'] <= 100
    assert {'1', '1_std', '50pct_seed0'} <= low_shot.keys()


# Sends SIGINT to itself when the libraries are imported, or later when the
# runner is built.
INTERRUPTED = {
    'while the libraries load': '''
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmengine':
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
''',
    'while the runner is built': '''
from cmae_mm.apis.arguments import load_libraries
load_libraries()
from cmae_mm.engine import ResumableRunner
ResumableRunner.from_cfg = lambda cfg: os.kill(os.getpid(), signal.SIGINT)
''',
}


@pytest.mark.parametrize('when', INTERRUPTED)
def test_ctrl_c_before_training_prints_nothing(when, tmp_path):
    # Whoever starts the tests in the background has it ignored.
    code = ('import os, signal, sys\nsys.argv = ["cmae"]\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
            f'{INTERRUPTED[when]}\n'
            'from cmae_mm.cli.main import main\n'
            f'main(["train", {QUICK!r}, "--work-dir", {str(tmp_path)!r}])')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
        timeout=120)
    assert done.returncode == 130, done.stderr
    assert 'Traceback' not in done.stderr


def test_module_and_spawned_worker_are_distinguished():
    """``python -m cmae_mm`` is the command; what it spawns is none."""
    # Without operators, mmcv prints a line on standard output.
    code = ('import contextlib\n'
            'import sys\n'
            'sys.orig_argv = {}\nsys.argv = {}\n'
            'with contextlib.redirect_stdout(sys.stderr):\n'
            '    import cmae_mm\n'
            'print("mmengine" in sys.modules)')
    for orig, argv, registers in (
            (['python', '-m', 'cmae_mm', 'knn'], ['-m', 'knn'], False),
            (['python', '-m', 'pytest'], ['-m'], True),
            (['python', '-c', 'x', '--multiprocessing-fork'], ['cmae'], True)):
        done = subprocess.run(
            [sys.executable, '-c', code.format(orig, argv)], cwd=ROOT,
            capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(registers)]


def test_a_shell_completes_commands_and_options():
    pytest.importorskip('argcomplete')
    for line, completed in (('cmae lo', 'low-shot'),
                            ('cmae knn --enc', '--encoder'),
                            ('cmae export a b c --to hf', 'hf_vitmae')):
        # As argcomplete's shell function asks: the answer comes on stream 8.
        done = subprocess.run(
            ['bash', '-c', f'{sys.executable} -m cmae_mm 8>&1 9>/dev/null '
             '>/dev/null'], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, '_ARGCOMPLETE': '1', 'COMP_LINE': line,
                 'COMP_POINT': str(len(line)), '_ARGCOMPLETE_IFS': ' '})
        assert completed in done.stdout.split(), done


@pytest.mark.parametrize('output, status', [
    ('> /dev/full', 1), ('| true', 0), ('>&-', 0)])
def test_command_finishes_with_a_closed_output(output, status, tmp_path):
    write_images(tmp_path / 'photos', 3)
    line = (f'{sys.executable} -m cmae_mm stats photos --out stats.json '
            f'--num-workers 0 {output}')
    done = subprocess.run(
        ['bash', '-c', f'set -o pipefail; {line}'], cwd=tmp_path, text=True,
        stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == status, done.stderr
    assert json.loads((tmp_path / 'stats.json').read_text())
    assert ('the output is incomplete' in done.stderr) is bool(status)
    assert 'Traceback' not in done.stderr
