"""The messages that docs/troubleshooting.md explains are ours."""
import ast
import re

import pytest
from helpers import ROOT

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
