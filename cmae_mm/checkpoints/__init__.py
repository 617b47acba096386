from .convert import (
    EXPORTS,
    KeyReport,
    export_classifier,
    export_cmae,
    export_encoder,
    import_cmae,
    import_mae,
    load_state,
)
from .encoder import find_encoder, load_encoder
from .errors import CheckpointError
from .files import check_whole, read_checkpoint, write_checkpoint
from .names import resample_pos_embed

__all__ = [
    'CheckpointError', 'EXPORTS', 'KeyReport', 'check_whole',
    'export_classifier', 'export_cmae', 'export_encoder', 'find_encoder', 'import_cmae',
    'import_mae', 'load_encoder', 'load_state', 'read_checkpoint',
    'resample_pos_embed', 'write_checkpoint'
]
