"""Each block of code in the documents is parsed by what runs it."""
import ast
import importlib
import inspect
import re
import shlex
import subprocess
import textwrap
from typing import NamedTuple

import pytest
import yaml
from helpers import ROOT
from mmengine import registry as mmengine
from mmpretrain import registry

from cmae_mm.cli.main import parse
from cmae_mm.packaged import find_config

DOCUMENTS = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
LANGUAGES = {'bash', 'python', 'yaml', 'mermaid', 'text'}
# Of other people; what they are given is not looked at.
OTHERS = {
    '.', 'cd', 'coverage', 'docker', 'eval', 'export', 'gh', 'git',
    'jupytext', 'mim', 'mkdocs', 'mypy', 'nsys', 'pip', 'pre-commit', 'ruff',
    'sbatch', 'tensorboard', 'torchrun', 'unzip', 'wget'
}
ASSIGNED = re.compile(r'^\w+=')


class Block(NamedTuple):
    """A fenced block of a document."""

    place: str
    language: str
    text: str


def blocks_of(path):
    fence = re.compile(
        r'^( *)```(\w*)[^\n]*\n(.*?)^\1```$', re.M | re.S)
    text = path.read_text()
    for found in fence.finditer(text):
        line = text[:found.start()].count('\n') + 1
        yield Block(f'{path.name}:{line}', found[2],
                    textwrap.dedent(found[3]))


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]


def of(*languages):
    chosen = [b for b in BLOCKS if b.language in languages]
    return pytest.mark.parametrize('block', chosen, ids=lambda b: b.place)


def test_every_block_says_its_language():
    assert len(BLOCKS) > 80
    assert not [b.place for b in BLOCKS if b.language not in LANGUAGES]


def commands_of(text):
    """Yield each simple command of a script as words, variables put in."""
    values = {}
    text = text.replace('\\\n', ' ')
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        command = []
        for word in [*words, ';']:
            if word in (';', '&&', '|', '&'):
                if command:
                    yield command
                command = []
                continue
            ends = word.endswith(';')
            word = re.sub(r'\$\{?(\w+)\}?',
                          lambda m: values.get(m[1], 'X'), word.rstrip(';'))
            if ASSIGNED.match(word) and not command:
                name, _, value = word.partition('=')
                values[name] = value
            else:
                # a variable of several words
                command += word.split() if word.startswith('--') else [word]
            if ends and command:
                yield command
                command = []


def fault_of(words):
    """Say what is wrong with a command, '' if nothing is."""
    program, *arguments = words
    if any('...' in word for word in words):
        return ''
    if program == 'cmae':
        try:
            arguments = parse(arguments)
        except SystemExit as end:
            return '' if end.code == 0 else f'cmae does not take {words}'
        config = getattr(arguments, 'config', '')
        if config.startswith(('configs/', 'cmae_', 'mae_', 'cifar10/')):
            find_config(config)
        return ''
    if program in ('python', 'python3', 'bash') or '/' in program:
        script = program if '/' in program else arguments[0]
        if script == '-m':
            return ''
        if not (ROOT / script).is_file():
            return f'there is no {script}'
        source = (ROOT / script).read_text()
        if script in ('tools/train.py', 'tools/dist_train.sh', 'tools/test.py',
                      'tools/dist_test.sh', 'tools/slurm_train.sh'):
            return ''
        for option in re.findall(r'(?<=\s)--[\w-]+', ' '.join(words)):
            # with the files beside it, which a script may hand options to
            beside = ''.join(p.read_text() for p in (ROOT / script).parent
                             .glob('*.py')) if script.endswith(
                                 ('.py', 'quickstart.sh')) else ''
            more = (ROOT / 'tools/quickstart/quickstart.py').read_text()
            if option not in source + beside + more:
                return f'{script} has no {option}'
        return ''
    return '' if program in OTHERS else f'what is {program}?'


@of('bash')
def test_a_shells_block_can_be_run(block):
    # `<class>` is no redirection, and `[--json]` may be left out
    text = re.sub(r'<(\w+)>', r'\1', block.text)
    text = re.sub(r'\[(--[^\]]*)\]', r'\1', text)
    done = subprocess.run(['bash', '-n', '-c', text], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    faults = [fault for words in commands_of(text)
              if (fault := fault_of(words))]
    assert not faults


def registered(name):
    """Find a class of a config by its name."""
    for key, one in {**vars(mmengine), **vars(registry)}.items():
        if key.isupper() and isinstance(one, mmengine.Registry):
            kind = one.get(name.split('.')[-1])
            if kind is not None:
                return kind
    return None


def accepts(kind, name):
    """Say whether a class takes an argument, handed on or not."""
    for base in kind.__mro__ if inspect.isclass(kind) else [kind]:
        function = vars(base).get('__init__') if inspect.isclass(
            base) else base
        if function is None:
            continue
        parameters = inspect.signature(function).parameters
        if name in parameters:
            return True
        if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


# Keys that the framework takes before the class gets the rest.
FRAMEWORKS = ('init_cfg', 'priority', 'constructor')


def config_faults(tree):
    """Yield what is wrong with the dicts of a config that have a type."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(
                node.func, 'id', '') == 'dict'):
            continue
        given = {k.arg: k.value for k in node.keywords if k.arg}
        name = getattr(given.pop('type', None), 'value', None)
        if not isinstance(name, str):
            continue
        kind = registered(name)
        if kind is None:
            yield f'there is no {name}'
        elif kind.__module__.startswith('cmae_mm.'):
            yield from (f'{name} takes no {key}' for key in given
                        if key not in FRAMEWORKS and not accepts(kind, key))


# Of libraries that are there with compiled operators alone, or not at all.
OPTIONAL = ('mmdet', 'mmseg', 'cmae_mm.dense')


@of('python')
def test_a_block_of_python_names_what_is_there(block):
    tree = ast.parse(block.text, block.place)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        module = getattr(node, 'module', None) or node.names[0].name
        if module.startswith(OPTIONAL) or getattr(node, 'level', 0):
            continue
        found = importlib.import_module(module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if not hasattr(found, alias.name):
                    importlib.import_module(f'{module}.{alias.name}')
    if not any(name in block.text for name in OPTIONAL):
        assert not list(config_faults(tree))


@of('yaml')
def test_a_block_of_yaml_can_be_read(block):
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize('command', [
    'cmae knnn a b', 'cmae knn', 'cmae knn cmae_vit-b_300e x --no-such',
    'python tools/of_nobody.py', 'bash tools/quickstart.sh --no-such',
    'DATA_ROOT=x frobnicate'
])
def test_a_wrong_command_is_found(command):
    assert [fault for words in commands_of(command)
            if (fault := fault_of(words))]


def test_a_wrong_config_is_found():
    for text, wrong in (
            ("dict(type='NoSuchHook')", 'no NoSuchHook'),
            ("dict(type='CMAEViT', mask_rato=0.5)", 'takes no mask_rato')):
        assert wrong in ' '.join(config_faults(ast.parse(text)))
