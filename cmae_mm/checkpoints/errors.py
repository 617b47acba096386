"""What is wrong with a checkpoint, in a sentence."""
from contextlib import contextmanager
from typing import Any, Iterator


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why."""


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
