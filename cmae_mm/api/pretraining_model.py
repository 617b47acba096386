"""Whole pre-training models, decoders and all, from a checkpoint."""
from typing import Any, Dict, Optional

from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

from ..checkpoints import (
    CheckpointError,
    find_encoder,
    import_cmae,
    load_state,
    read_checkpoint,
)
from ..checkpoints.encoder import RELEASED
from ..config import load_config
from ..models import CMAE
from ..plain_config import PlainConfigError, check_types, parse_config
from .checks import PathLike


def load_pretraining_model(checkpoint: PathLike,
                           config: Optional[str] = None) -> nn.Module:
    """Load the whole model of a pre-training checkpoint.

    Args:
        checkpoint (str | PathLike): A pre-training checkpoint of this
            project, or, with a config, a released CMAE.
        config (str, optional): Its config. Defaults to the one that the
            checkpoint holds as text, which is read and not run.

    Returns:
        CMAE: In evaluation mode, on the CPU.

    Raises:
        CheckpointError: If the file cannot be read, holds no decoder, or
            does not say what it is the model of.
    """
    init_default_scope('mmpretrain')
    state, meta = read_checkpoint(str(checkpoint))
    if not any('decoder' in name for name in state):
        raise CheckpointError(
            f'{checkpoint} holds an encoder without its pixel decoder, which '
            'alone reconstructs; name a checkpoint of the pre-training')
    cfg = _read_config(str(checkpoint), meta, config)
    model = MODELS.build(cfg)
    if not isinstance(model, CMAE):
        raise _not_cmae(str(checkpoint), type(model).__name__)
    try:
        if find_encoder(state).kind == RELEASED:
            import_cmae(model, state)
        else:
            load_state(model, state)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    return model.eval()


def _read_config(checkpoint: str, meta: Dict[str, Any],
                 config: Optional[str]) -> Dict[str, Any]:
    """Give the config of the model, with its data preprocessor.

    The checkpoint's own config is plain data with types of a list. The config
    that a person names may be anything.
    """
    if config is not None:
        return _model_of(load_config(config).to_dict(), config)
    if not isinstance(meta.get('cfg'), str):
        raise CheckpointError(
            f'{checkpoint} does not say which config it is of; name it '
            '(--config)')
    try:
        model = check_types(_model_of(parse_config(meta['cfg']), checkpoint))
    except PlainConfigError as error:
        raise CheckpointError(
            f'{checkpoint}: {error}; name its config (--config)') from None
    if model.get('type') != 'CMAE':
        raise _not_cmae(checkpoint, model.get('type'))
    return model


def _model_of(cfg: Dict[str, Any], name: str) -> Dict[str, Any]:
    if not isinstance(cfg.get('model'), dict):
        raise CheckpointError(
            f'the config of {name} has no model; name another one (--config)')
    model = dict(cfg['model'])
    if model.get('data_preprocessor') is None:
        model['data_preprocessor'] = cfg.get('data_preprocessor')
    return model


def _not_cmae(checkpoint: str, kind: Any) -> CheckpointError:
    return CheckpointError(
        f'{checkpoint} is of a {kind}, and what is needed is a pre-training '
        'checkpoint, of a CMAE')
