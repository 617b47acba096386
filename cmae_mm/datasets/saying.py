"""Saying something about an image once, not for each."""
import logging
from typing import Set

from mmengine.dist import get_rank
from mmengine.logging import print_log

_said: Set[str] = set()


def say_once(subject: str, text: str) -> None:
    """Log a line unless this process has said something of the subject.

    Args:
        subject (str): What it is about.
        text (str): The line.
    """
    if subject in _said:
        return
    _said.add(subject)
    if get_rank() == 0:
        print_log(text, logger='current', level=logging.WARNING)


def has_said(subject: str) -> bool:
    """Say whether something was said of a subject in this process."""
    return subject in _said
