"""Checkpoints: safe reading and writing, import, export.

Functions are imported from their modules when they are first used.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from ..dependencies import import_on_use

if TYPE_CHECKING:
    from .encoder_config import encoder_record, read_encoder_record
    from .export import EXPORTS, export_classifier, export_cmae, export_encoder
    from .layouts import find_encoder
    from .load import (RANDOM, LoadedEncoder, build_encoder, load_encoder,
                       load_encoder_into, load_model, load_pretraining_model)
    from .read import (check_complete, load_only_safely, read_checkpoint,
                       write_checkpoint)
    from .state_dict import KeyReport, load_state, resample_pos_embed
    from .unpickler import to_plain

__all__ = [
    'CheckpointError', 'DamagedCheckpoint', 'EXPORTS', 'KeyReport',
    'LoadedEncoder', 'RANDOM', 'build_encoder', 'check_complete',
    'encoder_record', 'export_classifier', 'export_cmae', 'export_encoder',
    'find_encoder', 'load_encoder', 'load_encoder_into', 'load_model',
    'load_only_safely', 'load_pretraining_model', 'load_state',
    'prefix_errors', 'read_checkpoint', 'read_encoder_record',
    'resample_pos_embed', 'to_plain', 'write_checkpoint'
]

__getattr__ = import_on_use(__name__, {
    'encoder_config': ('encoder_record', 'read_encoder_record'),
    'export': ('EXPORTS', 'export_classifier', 'export_cmae',
               'export_encoder'),
    'layouts': ('find_encoder', ),
    'load': ('LoadedEncoder', 'RANDOM', 'build_encoder', 'load_encoder',
             'load_encoder_into', 'load_model', 'load_pretraining_model'),
    'read': ('check_complete', 'load_only_safely', 'read_checkpoint',
             'write_checkpoint'),
    'state_dict': ('KeyReport', 'load_state', 'resample_pos_embed'),
    'unpickler': ('to_plain', ),
})


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message has the reason."""


class DamagedCheckpoint(CheckpointError):
    """A file that is certainly damaged: truncated, modified or unparsable."""


@contextmanager
def prefix_errors(checkpoint: Any) -> Iterator[None]:
    """Prefix error messages with the name of a checkpoint."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        if str(checkpoint) in text.split('\n')[0]:
            raise
        raise type(error)(f'{checkpoint}: {text}') from None


def reject_unsafe(name: str, what: Any) -> NoReturn:
    """Reject a file that contains more than plain values.

    Args:
        name (str): Name of the file.
        what (Any): Description of the rejected content.

    Raises:
        CheckpointError: Always.
    """
    text = str(what)[:200]
    text = text if text.isprintable() else ascii(text)
    raise CheckpointError(
        f'{name} holds {text}, not only tensors and plain values, and was '
        'not loaded because it could run code; if you trust its origin, load '
        'it once with torch.load(..., weights_only=False) and save its '
        "'state_dict' only")
