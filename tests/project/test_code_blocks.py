"""Code blocks in the documents are parsed by their language."""
import ast
import importlib
import inspect
import re
import shlex
import subprocess
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from helpers import ROOT
from mmengine import registry as mmengine
from mmpretrain import registry

from cmae_mm.cli.main import parse
from cmae_mm.config import ConfigError, load_config
from cmae_mm.dependencies import find_config

DOCUMENTS = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
LANGUAGES = {'bash', 'python', 'yaml', 'mermaid', 'text'}
# Other programs, whose arguments are not checked.
OTHERS = {
    '.', 'cd', 'coverage', 'docker', 'eval', 'export', 'gh', 'git',
    'isort', 'jupytext', 'mim', 'mkdocs', 'mypy', 'nsys', 'pip', 'pre-commit',
    'ruff', 'sbatch', 'tensorboard', 'torchfrtrace', 'torchrun', 'unzip',
    'wget'
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


def test_every_block_has_a_language():
    assert len(BLOCKS) > 80
    assert not [b.place for b in BLOCKS if b.language not in LANGUAGES]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_no_block_escapes(path):
    """Each fence opens or closes a block that is looked at here."""
    text = path.read_text()
    fences = re.findall(r'^ *(?:`{3,}|~{3,})', text, re.M)
    assert len(fences) == 2 * len(list(blocks_of(path)))
    assert set(map(str.strip, fences)) <= {'```'}


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


# What stands for a reader's own, and files that commands before have written.
PLACEHOLDER = re.compile(r'[A-Z]+(\.py)?$|work_dirs/|X|.*<')
# Scripts of ours that hand what follows to a command: its name, and how many
# arguments they keep, those of the launcher.
SHIMS = {
    'tools/train.py': ('train', 0, 0), 'tools/test.py': ('test', 0, 0),
    'tools/dist_train.sh': ('train', 0, 1),
    'tools/dist_test.sh': ('test', 0, 1),
    'tools/slurm_train.sh': ('train', 2, 0),
}


def fault_of_ours(name, arguments):
    """Say what is wrong with a command line of ours, '' if nothing is."""
    try:
        parsed = parse([name, *arguments] if name else arguments)
    except SystemExit as end:
        return '' if end.code == 0 else f'cmae does not take {arguments}'
    config = getattr(parsed, 'config', None) or 'CONFIG'
    is_folder = parsed.command == 'export' and parsed.out is None
    if PLACEHOLDER.match(config) or is_folder:
        return ''
    pairs = [pair for pair in getattr(parsed, 'cfg_options', None) or []
             if not PLACEHOLDER.match(pair.partition('=')[2])
             and not pair.startswith('image_stats=')]
    try:
        if not Path(find_config(config)).parent.name.startswith(
                ('detection', 'segmentation')):
            load_config(config, pairs)
    except (ConfigError, FileNotFoundError) as error:
        return str(error)
    return ''


def fault_of_shim(script, arguments):
    """The same of a script that hands its arguments to a command."""
    name, before, after = SHIMS[script]
    arguments = arguments[before:]
    place = next((i for i, word in enumerate(arguments)
                  if word.endswith('.py') or word == 'CONFIG'), None)
    if place is None:
        return f'{script} is given no config'
    place += 1 + (name == 'test')
    return fault_of_ours(name, arguments[:place] + arguments[place + after:])


def fault_of(words):
    """Say what is wrong with a command, '' if nothing is."""
    program, *arguments = words
    if 'cmae_mm' in words[:-1] and '-m' in words:  # of python, torchrun
        program, arguments = 'cmae', words[words.index('cmae_mm') + 1:]
    if any('...' in word for word in arguments):
        # an ellipsis at the end, in place of a value
        arguments = [w for w in arguments if '...' not in w]
        if arguments[-1:] == ['--cfg-options']:
            arguments.pop()
    if program == 'cmae':
        return fault_of_ours('', arguments)
    shim = next((w for w in words if w in SHIMS), None)
    if shim is not None:
        return fault_of_shim(shim, words[words.index(shim) + 1:])
    if program in ('python', 'python3', 'bash') or '/' in program:
        script = program if '/' in program else arguments[0]
        if script in ('-m', '-c'):
            return ''
        if not (ROOT / script).is_file():
            return f'there is no {script}'
        source = (ROOT / script).read_text()
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


def config_faults(tree, own=()):
    """Yield what is wrong with the dicts of a config that have a type."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(
                node.func, 'id', '') == 'dict'):
            continue
        given = {k.arg: k.value for k in node.keywords if k.arg}
        name = getattr(given.pop('type', None), 'value', None)
        if not isinstance(name, str) or name in own:
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
def test_python_blocks_use_existing_names(block):
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
        page = block.place.partition(':')[0]
        own = [name for other in BLOCKS if other.place.startswith(f'{page}:')
               for name in re.findall(r'^class (\w+)', other.text, re.M)]
        assert not list(config_faults(tree, own))


@of('yaml')
def test_a_block_of_yaml_can_be_read(block):
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize('command', [
    'cmae knnn a b', 'cmae knn', 'cmae knn cmae_vit-b_300e x --no-such',
    'python tools/of_nobody.py', 'bash tools/quickstart.sh --no-such',
    'DATA_ROOT=x frobnicate', 'torchrun -m cmae_mm train cmae_vit-b_301e',
    'tools/dist_train.sh configs/of_nobody.py 8', 'cmae train of_nobody',
    'tools/dist_train.sh configs/cmae_vit-b_300e.py 8 --no-such 1',
    'cmae train cmae_vit-b_300e --cfg-options trian_cfg.max_epochs=1'
])
def test_a_wrong_command_is_found(command):
    assert [fault for words in commands_of(command)
            if (fault := fault_of(words))]


def test_a_wrong_config_is_found():
    for text, wrong in (
            ("dict(type='NoSuchHook')", 'no NoSuchHook'),
            ("dict(type='CMAEViT', mask_rato=0.5)", 'takes no mask_rato')):
        assert wrong in ' '.join(config_faults(ast.parse(text)))
