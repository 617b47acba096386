from .encoder import find_encoder, load_encoder_into
from .errors import CheckpointError
from .exporting import (
    EXPORTS,
    export_classifier,
    export_cmae,
    export_encoder,
)
from .files import check_whole, read_checkpoint, write_checkpoint
from .fitting import KeyReport, load_state
from .importing import import_cmae, import_convmae, import_mae
from .log_history import to_plain
from .positions import resample_pos_embed
from .safe_loading import load_only_safely

__all__ = [
    'CheckpointError', 'EXPORTS', 'KeyReport', 'check_whole',
    'export_classifier', 'export_cmae', 'export_encoder', 'find_encoder',
    'import_cmae', 'import_convmae', 'import_mae', 'load_encoder_into',
    'load_only_safely', 'load_state', 'read_checkpoint',
    'resample_pos_embed', 'to_plain', 'write_checkpoint'
]
