"""Checkpoints from elsewhere, and for elsewhere."""
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import nn

from ..version import __version__
from . import names
from .encoder_facts import encoder_facts
from .errors import CheckpointError
from .files import StateDict, write_checkpoint
from .fitting import KeyReport, load_state


def import_cmae(model: nn.Module,
                state: StateDict,
                allow_partial: bool = False) -> KeyReport:
    """Load a released CMAE checkpoint, the whole pre-training state.

    Args:
        model (CMAE): Built for the checkpoint's sizes.
        state (StateDict): Under the released code's names.
        allow_partial (bool): See :func:`load_state`.

    Returns:
        KeyReport: What matched and what did not.
    """
    state, optional = from_released(model, state)
    return load_state(model, state, allow_partial, optional)


def from_released(model: nn.Module,
                  state: StateDict) -> Tuple[StateDict, List[str]]:
    """Rename a released CMAE checkpoint for a model.

    Args:
        model (CMAE): Built for the checkpoint's sizes.
        state (StateDict): Under the released code's names.

    Returns:
        Tuple[StateDict, List[str]]: Under the model's names, and those that
        need not be there.
    """
    state = names.from_cmae(state)
    target = getattr(model, 'target', None)
    encoder = 'target.module.encoder.'
    optional = []
    if target is not None and not target.with_cls_token:
        # A target that has no class token may come with or without its slot.
        positions = state.get(f'{encoder}pos_embed')
        side = model.backbone.pos_embed.shape[1]
        if positions is not None and positions.shape[1] == side - 1:
            state[f'{encoder}pos_embed'] = torch.cat(
                [torch.zeros_like(positions[:, :1]), positions], dim=1)
        optional.append(f'{encoder}cls_token')
    return state, optional


def import_mae(encoder: nn.Module,
               state: StateDict,
               allow_partial: bool = False) -> KeyReport:
    """Load the encoder of an MAE checkpoint (FAIR's or timm's names).

    Args:
        encoder (CMAEViT): The encoder.
        state (StateDict): FAIR's pre-training or fine-tuning state.
        allow_partial (bool): See :func:`load_state`.

    Returns:
        KeyReport: What matched; MAE's decoder and a classifier's head are not
        looked at.
    """
    return load_state(encoder, names.from_mae(state), allow_partial)


def select_encoder(model: nn.Module, encoder: str) -> nn.Module:
    """Take the online or the target encoder of a model.

    Raises:
        CheckpointError: If the model has no such encoder.
    """
    if encoder == 'online':
        return model.backbone
    if encoder != 'target':
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    if model.target is None:
        raise CheckpointError(
            'the model has no target encoder, since head.contrastive is None')
    if not model.target.with_cls_token:
        raise CheckpointError(
            'this target encoder works without a class token and is not '
            'exported; export the online encoder')
    return model.target.encoder


def _resized(vit: nn.Module, img_size: Optional[int]) -> StateDict:
    """Give an encoder's state for another image size, in pixels."""
    state = dict(vit.state_dict())
    if img_size is not None:
        if img_size % vit.patch_size:
            raise CheckpointError(
                f'patches of {vit.patch_size} pixels do not divide images of '
                f'{img_size}')
        state['pos_embed'] = names.resample_pos_embed(
            state['pos_embed'], img_size // vit.patch_size)
    return state


def _with_prefix(state: StateDict) -> StateDict:
    return {f'backbone.{k}': v for k, v in state.items()}


def _to_mmdet(state: StateDict) -> StateDict:
    return _with_prefix(names.to_vit_sam(state))


def _hf_state(state: StateDict) -> StateDict:
    if 'ln1.weight' not in state:
        # ViTModel cannot leave its final norm out: this one only
        # normalises, and the tokens before it are hidden_states[-1].
        width = state['pos_embed'].shape[2]
        state = dict(state)
        state['ln1.weight'] = torch.ones(width)
        state['ln1.bias'] = torch.zeros(width)
    return names.to_hf(state)


# What is written for whom.
EXPORTS: Mapping[str, Callable[[StateDict], StateDict]] = dict(
    mmpretrain=_with_prefix,
    mmdet=_to_mmdet,
    mmseg=_with_prefix,
    timm=names.to_timm,
    hf_vit=_hf_state,
    hf_vitmae=_hf_state)

HF_CLASSES = dict(hf_vit=('vit', 'ViTModel'), hf_vitmae=('vit_mae',
                                                         'ViTMAEModel'))


def _hf_config(vit: nn.Module, to: str, img_size: int) -> Dict[str, Any]:
    """Give the ``config.json`` that belongs to an exported encoder."""
    model_type, architecture = HF_CLASSES[to]
    return dict(
        architectures=[architecture],
        model_type=model_type,
        hidden_size=vit.embed_dims,
        num_hidden_layers=vit.num_layers,
        num_attention_heads=vit.arch_settings['num_heads'],
        intermediate_size=vit.arch_settings['feedforward_channels'],
        hidden_act='gelu',
        layer_norm_eps=1e-6,
        image_size=img_size,
        patch_size=vit.patch_size,
        num_channels=3,
        qkv_bias=True,
        hidden_dropout_prob=0.,
        attention_probs_dropout_prob=0.)


def export_encoder(model: nn.Module,
                   path: str,
                   to: str = 'mmpretrain',
                   encoder: str = 'online',
                   img_size: Optional[int] = None,
                   **meta: Any) -> None:
    """Save an encoder for another library.

    Args:
        model (CMAE): The pre-trained model.
        path (str): ``.safetensors`` or ``.pth``; for Hugging Face a folder,
            which gets ``model.safetensors`` and ``config.json``.
        to (str): One of :data:`EXPORTS`. Defaults to 'mmpretrain'.
        encoder (str): 'online' or 'target'. The released recipe's target has
            no final norm. Defaults to 'online'.
        img_size (int, optional): Side of the images in pixels that positions
            are resampled to. Defaults to the model's.
        **meta: What else the file says about itself: epoch, recipe...

    Raises:
        CheckpointError: If the model has no such encoder, or an argument is
            none of what is allowed.
    """
    if to not in EXPORTS:
        raise CheckpointError(
            f'the encoder is exported to one of {", ".join(EXPORTS)}, but got '
            f'{to!r}')
    vit = select_encoder(model, encoder)
    state = EXPORTS[to](_resized(vit, img_size))
    meta = dict(
        source='cmae_mm',
        version=__version__,
        encoder=encoder,
        format=to,
        final_norm=vit.final_norm,
        **encoder_facts(model),
        **meta)
    if to not in HF_CLASSES:
        write_checkpoint(path, state, meta)
        return
    folder = Path(path)
    if folder.suffix:
        raise CheckpointError(
            f'for Hugging Face name a folder, not a file like {path}')
    # transformers asks for the framework's name.
    write_checkpoint(
        str(folder / 'model.safetensors'), state, dict(meta, format='pt'))
    config = _hf_config(vit, to, img_size or vit.img_size[0])
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def export_classifier(model: nn.Module, path: str, to: str = 'timm',
                      **meta: Any) -> None:
    """Save a fine-tuned classifier for timm.

    timm's ``vit_*`` models take it with ``global_pool='avg'`` (whose norm
    after pooling is ``fc_norm``).

    Args:
        model (ImageClassifier): ``TransferViT`` with pooled patch tokens, and
            a ``LinearClsHead``.
        path (str): ``.safetensors`` or ``.pth``.
        to (str): 'timm', the only one.
        **meta: What else the file says about itself.

    Raises:
        CheckpointError: If the classifier is built otherwise.
    """
    if to != 'timm':
        raise CheckpointError(
            f"a classifier is exported to 'timm' alone, but got {to!r}")
    vit = model.backbone
    head = getattr(model.head, 'fc', None)
    if model.with_neck or head is None or not hasattr(vit, 'ln2'):
        raise CheckpointError(
            "for timm a classifier needs out_type='avg_featmap', no neck and "
            'a LinearClsHead')
    state = dict(vit.state_dict())
    norm = {k: state.pop(k) for k in list(state) if k.startswith('ln2.')}
    state = names.to_timm(state)
    for name, value in norm.items():
        state[name.replace('ln2.', 'fc_norm.')] = value
    for name, value in head.state_dict().items():
        state[f'head.{name}'] = value
    write_checkpoint(
        path, state,
        dict(source='cmae_mm', version=__version__, format=to, **meta))


def export_cmae(model: nn.Module, path: str, **meta: Any) -> None:
    """Save the whole pre-training state under the released code's names.

    Args:
        model (CMAE): The model.
        path (str): ``.safetensors`` or ``.pth``.
        **meta: What else the file says about itself.
    """
    write_checkpoint(
        path, names.to_cmae(model.state_dict()),
        dict(
            source='cmae_mm',
            version=__version__,
            format='cmae',
            **encoder_facts(model),
            **meta))
