from .encoder_config import encoder_facts, read_encoder_facts
from .errors import CheckpointError, DamagedCheckpoint, naming
from .export import (
    EXPORTS,
    export_classifier,
    export_cmae,
    export_encoder,
)
from .layouts import find_encoder
from .load import (
    RANDOM,
    LoadedEncoder,
    build_encoder,
    load_encoder,
    load_encoder_into,
    load_model,
    load_pretraining_model,
)
from .read import (
    check_whole,
    load_only_safely,
    read_checkpoint,
    write_checkpoint,
)
from .state_dict import KeyReport, load_state, resample_pos_embed
from .unpickler import to_plain

__all__ = [
    'CheckpointError', 'DamagedCheckpoint', 'EXPORTS', 'KeyReport',
    'LoadedEncoder', 'RANDOM', 'build_encoder', 'check_whole',
    'encoder_facts', 'export_classifier', 'export_cmae', 'export_encoder',
    'find_encoder', 'load_encoder', 'load_encoder_into', 'load_model',
    'load_only_safely', 'load_pretraining_model', 'load_state', 'naming',
    'read_checkpoint', 'read_encoder_facts', 'resample_pos_embed',
    'to_plain', 'write_checkpoint'
]
