"""Completing configs by what follows from other parts of the model."""
from typing import Any, Dict, Optional, Tuple, Union

from torch import nn

Config = Dict[str, Any]

# Projector and predictor as the released code has them: two linear layers by
# way of 1536 to 256, BatchNorm in the middle alone, a bias on the first alone.
_MLP = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=1536,
    out_channels=256,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='BN1d', eps=1e-6))


def fill_in(cfg: Config, name: str, **sizes: Any) -> Config:
    """Complete a config by sizes that follow from other parts.

    Args:
        cfg (dict): The settings that are given.
        name (str): Name of the config, for errors.
        **sizes: The settings that follow.

    Returns:
        dict: A new config with both.

    Raises:
        ValueError: If the config sets one of the sizes to something else.
    """
    cfg = dict(cfg)
    for key, value in sizes.items():
        if cfg.setdefault(key, value) != value:
            raise ValueError(
                f'{name}.{key}={cfg[key]!r} contradicts the rest of the model,'
                f' from which {key}={value!r} follows; leave it out')
    return cfg


def mlp_cfg(cfg: Config, name: str, **sizes: Any) -> Config:
    """Complete the config of a projector or predictor.

    Args:
        cfg (dict): The settings that are given. Over the released code's
            perceptron, D-1536-256 with BatchNorm in the middle, unless
            ``type`` names another neck, which has defaults of its own.
        name (str): Name of the config, for errors.
        **sizes: The settings that follow from other parts.

    Returns:
        dict: A registered neck's config.

    Raises:
        ValueError: If the config sets one of the sizes to something else, or
            the output width of another neck is not given.
    """
    cfg = fill_in(cfg, name, **sizes)
    kind = cfg.get('type', 'NonLinearNeck')
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind.split('.')[-1] == 'NonLinearNeck':
        return _MLP | cfg
    if 'out_channels' not in cfg:
        raise ValueError(
            f'{name} is a {kind}, whose width is not known: set '
            f'{name}.out_channels')
    return cfg


def complete_parts(encoder: nn.Module, neck: Config,
                   head: Config) -> Tuple[Config, Config]:
    """Complete neck and head by what follows from encoder and projector.

    ``head.contrastive=None`` is the one switch that makes an MAE: the neck
    then has neither feature decoder nor projector, whatever is set for them.

    Args:
        encoder (nn.Module): The online encoder.
        neck (dict): Settings of the neck.
        head (dict): Settings of the head.

    Returns:
        Tuple[dict, dict]: Configs of neck and head.

    Raises:
        ValueError: If they contradict the encoder or each other.
    """
    if getattr(encoder, 'out_type', 'raw') != 'raw':
        raise ValueError(
            f'backbone.out_type={encoder.out_type!r} is for classifiers and '
            'dense tasks; pre-training decodes all tokens: leave out_type out')
    patches = dict(
        patch_size=encoder.patch_size, in_channels=encoder.in_channels)
    neck = fill_in(
        dict(type='mmpretrain.CMAENeck') | dict(neck),
        'neck',
        embed_dims=encoder.embed_dims,
        num_patches=encoder.num_patches,
        num_extra_tokens=encoder.num_extra_tokens,
        **patches)
    head = fill_in(
        dict(type='mmpretrain.CMAEHead') | dict(head), 'head', **patches)
    if head.get('contrastive') is None:
        return neck | dict(projector=None), head
    if neck.setdefault('projector', {}) is None:
        raise ValueError(
            'neck.projector=None leaves the contrastive branch without a '
            'projector; set head.contrastive=None as well, for MAE, or leave '
            'neck.projector out')
    neck['projector'] = mlp_cfg(
        neck['projector'], 'neck.projector', in_channels=encoder.embed_dims)
    width = neck['projector']['out_channels']
    contrastive = dict(head['contrastive'])
    contrastive['predictor'] = mlp_cfg(
        contrastive.get('predictor', {}),
        'head.contrastive.predictor',
        in_channels=width,
        out_channels=width)
    return neck, head | dict(contrastive=contrastive)


def preprocessor_cfg(cfg: Optional[Union[Config, nn.Module]]
                     ) -> Union[Config, nn.Module]:
    """Give the data preprocessor's default with its scope.

    Other projects' default scope is another one than mmpretrain's.

    Args:
        cfg (dict | nn.Module, optional): What is given.

    Returns:
        dict | nn.Module: A config with a type, or the module.
    """
    if isinstance(cfg, nn.Module):
        return cfg
    return dict(type='mmpretrain.SelfSupDataPreprocessor') | dict(cfg or {})
