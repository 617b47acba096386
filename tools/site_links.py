"""Links of the documents to files beside them, for mkdocs.

On the site there are the documents alone: a link such as
``[CONTRIBUTING.md](../CONTRIBUTING.md)`` becomes its text.
"""
import re
from typing import Any

_BESIDE = re.compile(r'\[([^\]]+)\]\(\.\./[^)]+\)')


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take a page's links to files of the clone away.

    Args:
        markdown (str): The page.

    Returns:
        str: The page with their texts.
    """
    return _BESIDE.sub(r'\1', markdown)
