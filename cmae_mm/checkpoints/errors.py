"""Errors of checkpoint files."""
from contextlib import contextmanager
from typing import Any, Iterator, NoReturn


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message gives the reason."""


class DamagedCheckpoint(CheckpointError):
    """A file that is certainly damaged: truncated, modified or unparsable."""


@contextmanager
def naming(checkpoint: Any) -> Iterator[None]:
    """Begin the messages of errors with the name of a checkpoint."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        if str(checkpoint) in text.split('\n')[0]:
            raise
        raise type(error)(f'{checkpoint}: {text}') from None


def refuse(name: str, what: Any) -> NoReturn:
    """Refuse a file that holds more than plain values.

    Args:
        name (str): Name of the file.
        what (Any): What it holds, in words.

    Raises:
        CheckpointError: Always.
    """
    text = str(what)[:200]
    text = text if text.isprintable() else ascii(text)
    raise CheckpointError(
        f'{name} holds {text}, which is more than tensors and plain '
        'values, and reading it could run code that is in the file, so it '
        'is refused; if you trust its origin, load it once in a script of '
        "your own with torch.load(..., weights_only=False) and save its "
        "'state_dict' alone")
