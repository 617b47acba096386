"""Links, files, configs and commands in the documents exist."""
import re
from itertools import product
from pathlib import Path

import pytest
from helpers import ROOT

from cmae_mm.cli.main import COMMANDS

DOCUMENTS = sorted([
    *ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'),
    *(ROOT / '.github').rglob('*.md')
])
OTHERS = {'.git', '.venv', 'work_dirs', 'data', 'build', 'dist'}
FILES = sorted(
    str(p.relative_to(ROOT)) for top in ROOT.iterdir()
    if top.name not in OTHERS for p in [top, *top.rglob('*')] if p.is_file())
# What commands write, and what stands for a reader's own file.
WRITTEN = {'config.py', 'CONFIG.py', 'results.md', 'report.md', 'runtime.py',
           'cmae.py', 'new_style.py'}
# What has a placeholder in it, or is another package's.
_NOT_OURS = re.compile(r'\S*<[^<>\s]+>\S*|\w+::\S+|\.mim/\S+')
_PATH = re.compile(r'[\w.{},*/-]+\.(?:py|sh|md|cfg|toml|yml|cff)\b|'
                   r'(?:requirements|\.ci)/\w[\w.]*')
# A block that begins with a file's name writes that file.
_WRITES = re.compile(r'^```python\n# (\S+\.py)\n', re.M)
_FOLDER = re.compile(r'\b(?:cmae_mm|configs|docs|examples|requirements|tests|'
                     r'tools)/[\w.{},*/-]*\w/(?=[`\s:;,)])')
_CONFIG = re.compile(r'\bc?mae_vit-\w[\w-]*')


def expand(text):
    """Expand braces as a shell does."""
    parts = re.split(r'\{([^{}]*)\}', text)
    choices = [p.split(',') if i % 2 else [p] for i, p in enumerate(parts)]
    return [''.join(chosen) for chosen in product(*choices)]


def missing_files(text, files=FILES):
    """Yield each path in a text that no file or folder has."""
    files = [*files, *_WRITES.findall(text)]
    text = _NOT_OURS.sub(' ', text)
    for found in _PATH.findall(text) + _FOLDER.findall(text):
        for path in expand(found):
            if '..' in path or path.startswith(('/', 'work_dirs/', 'data/')):
                continue
            if path.endswith('/'):
                path += '*'
            pattern = path.replace('**', '*').removeprefix('./')
            if Path(path).name in WRITTEN or any(
                    Path('/' + file).match(pattern) for file in files):
                continue
            yield path


def anchors(text):
    """Give the anchors that GitHub makes of headings."""
    for heading in re.findall(r'^#+ (.*)$', text, re.M):
        heading = re.sub(r'[^\w\s-]', '', heading.lower())
        yield heading.strip().replace(' ', '-')


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_links_have_targets(path):
    for link in re.findall(r'\]\(([^)\s]+)\)', path.read_text()):
        if link.startswith(('http://', 'https://')):
            continue
        target, _, anchor = link.partition('#')
        there = path.parent / target if target else path
        assert there.exists(), f'{path.name} links to {link}'
        if anchor:
            assert anchor in set(anchors(there.read_text())), link


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_files_that_a_document_names_exist(path):
    assert not list(missing_files(path.read_text()))


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_configs_that_a_document_names_exist(path):
    stems = {Path(f).stem for f in FILES if f.startswith('configs/')}
    text = re.sub(r'\S*[{*]\S*', '', path.read_text())  # tested as files
    named = set(_CONFIG.findall(text))
    assert not named - stems


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_commands_that_a_document_names_exist(path):
    """Lines of code that begin with `cmae`, and `cmae NAME` in the text."""
    text = path.read_text()
    code = '\n'.join(re.findall(r'^```(?:bash|shell)\n(.*?)^```', text,
                                re.M | re.S))
    used = set(re.findall(r'(?:^|[\s=])cmae ([a-z][\w-]*)', code))
    used |= set(re.findall(r'`cmae ([a-z][\w-]*)', text))
    assert not used - set(COMMANDS)


@pytest.mark.parametrize('text', [
    'see `cmae_mm/models/of_nobody.py`', 'configs/finetune/vit-{s,xxl}_*.py',
    'python tools/of_nobody.py', 'the rooms `cmae_mm/nothing/` and others',
    'tests/of_nobody/test_*.py', 'requirements/of_nobody.txt'
])
def test_missing_file_is_reported(text):
    assert list(missing_files(text))


def test_existing_files_are_not_reported():
    text = ('`configs/cmae_vit-b_{300,800}e.py`, `configs/finetune/*.py`, '
            '`README.md`, `cmae_mm/cli/`, `models/__init__.py`, `.ci/run`')
    assert not list(missing_files(text))
