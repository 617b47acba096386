"""docs/troubleshooting.md quotes messages of the code."""
import ast
import re
import shlex

import pytest
from helpers import ROOT

from cmae_mm.config import load_config

PAGE = (ROOT / 'docs/troubleshooting.md').read_text()
MESSAGES = re.findall(r'^\*\*"(.+?)"\*\*', PAGE, re.M | re.S)
VALUE = '…'


def texts(path):
    """Give the strings of a file, with a sign for each value in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield ''.join(
                part.value if isinstance(part, ast.Constant) else VALUE
                for part in node.values)


@pytest.fixture(scope='module')
def ours():
    return [text for path in (ROOT / 'cmae_mm').rglob('*.py')
            for text in texts(path)]


def test_the_page_explains_messages():
    assert len(MESSAGES) > 15


@pytest.mark.parametrize('message', MESSAGES)
def test_a_message_is_in_the_code(message, ours):
    wanted = ' '.join(message.split()).strip(f'{VALUE} ')
    assert any(wanted in ' '.join(text.split()) for text in ours), wanted


def test_the_advice_on_the_data_folder_takes_effect(monkeypatch):
    lines = re.search(r'```bash\n(DATA_ROOT=.*?)```', PAGE, re.S)[1]
    for line in lines.splitlines():
        words = shlex.split(line)
        monkeypatch.delenv('DATA_ROOT', raising=False)
        if words[0].startswith('DATA_ROOT='):
            monkeypatch.setenv(*words.pop(0).split('='))
        options = words[words.index('--cfg-options') + 1:] if (
            '--cfg-options' in words) else []
        cfg = load_config(words[2], options)
        assert cfg.train_dataloader.dataset.data_root == '/path/to/images'
    monkeypatch.delenv('DATA_ROOT', raising=False)
    cfg = load_config('cmae_vit-s_300e', ['data_root=/path/to/images'])
    assert cfg.train_dataloader.dataset.data_root != '/path/to/images'
