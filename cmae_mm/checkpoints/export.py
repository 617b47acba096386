"""Export of encoders, classifiers and whole models to other libraries."""
import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

from torch import nn

from ..files import write_file
from ..version import __version__
from . import layouts
from .encoder_config import encoder_facts
from .errors import CheckpointError
from .read import StateDict, write_checkpoint
from .state_dict import is_hybrid, resample_pos_embed

# Functions that convert an encoder to the names of a library.
EXPORTS: Mapping[str, Callable[[StateDict], StateDict]] = dict(
    mmpretrain=layouts.with_prefix,
    mmdet=layouts.to_mmdet,
    mmseg=layouts.with_prefix,
    timm=layouts.to_timm,
    hf_vit=layouts.to_hf,
    hf_vitmae=layouts.to_hf,
    convmae=layouts.to_convmae)
# The libraries that have hybrid encoders.
_HYBRID = ('convmae', 'mmpretrain')
# Type and class of Hugging Face's models.
_CLASSES = dict(
    hf_vit=('vit', 'ViTModel'), hf_vitmae=('vit_mae', 'ViTMAEModel'))


def select_encoder(model: nn.Module, encoder: str) -> nn.Module:
    """Take the online or the target encoder of a model.

    Args:
        model (CMAE): The model.
        encoder (str): 'online' or 'target'.

    Returns:
        CMAEViT | CMAEConvViT: The encoder.

    Raises:
        CheckpointError: If the model has no such encoder.
    """
    if encoder not in ('online', 'target'):
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    if encoder == 'online':
        return model.backbone
    if getattr(model, 'target', None) is None:
        raise CheckpointError(
            'the model has no target encoder, since head.contrastive is None')
    return model.target.encoder


def _state_for(model: nn.Module, to: str, encoder: str,
               img_size: Optional[int]) -> StateDict:
    """Convert an encoder to a library's names."""
    vit = select_encoder(model, encoder)
    if encoder == 'target' and (
            model.target.num_extra_tokens < vit.num_extra_tokens):
        raise CheckpointError(
            'this target encoder works without a class token and is not '
            'exported; export the online encoder')
    state = dict(vit.state_dict())
    if img_size is not None:
        if img_size % vit.patch_size:
            raise CheckpointError(
                f'patches of {vit.patch_size} pixels do not divide images of '
                f'{img_size}')
        state['pos_embed'] = resample_pos_embed(
            state['pos_embed'], img_size // vit.patch_size,
            vit.num_extra_tokens)
    _check_kind(is_hybrid(state), to)
    state = EXPORTS[to](state)
    if to == 'convmae' and encoder == 'online' and img_size is None:
        # ConvMAE's pre-training checkpoints contain the decoder.
        state |= layouts.decoder_to_convmae(
            model.neck.pixel_decoder.state_dict())
    return state


def _check_kind(hybrid: bool, to: str) -> None:
    """Check that a library has encoders of this kind."""
    if hybrid and to not in _HYBRID:
        raise CheckpointError(
            f'a hybrid encoder is exported to {" or ".join(_HYBRID)} alone, '
            f'since there is no such network for {to}; detection and '
            'segmentation take the checkpoint as it is, with the backbones of '
            'this project')
    if not hybrid and to == 'convmae':
        raise CheckpointError(
            'a plain vision transformer is not exported to convmae, whose '
            "encoder has convolution stages; take one of "
            f'{", ".join(k for k in EXPORTS if k != to)}')


def export_encoder(model: nn.Module,
                   path: str,
                   to: str = 'mmpretrain',
                   encoder: str = 'online',
                   img_size: Optional[int] = None,
                   images: Optional[Mapping[str, Any]] = None,
                   **meta: Any) -> None:
    """Save an encoder for another library.

    Args:
        model (CMAE): The pre-trained model.
        path (str): The file, ``.safetensors`` or ``.pth``; for Hugging Face a
            folder, which gets ``model.safetensors`` and ``config.json``.
        to (str): One of :data:`EXPORTS`. Defaults to 'mmpretrain'.
        encoder (str): 'online' or 'target'. The released recipe's target has
            no final norm. Defaults to 'online'.
        img_size (int, optional): Side of the images in pixels that position
            embeddings are resampled for. Defaults to the model's.
        images (Mapping[str, Any], optional): Settings for decoding images,
            see :func:`~cmae_mm.checkpoints.encoder_config.encoder_facts`.
        **meta: Further metadata: epoch, recipe...

    Raises:
        CheckpointError: If the model has no such encoder, an argument is not
            allowed, or the file cannot be written.
    """
    if to not in EXPORTS:
        raise CheckpointError(
            f'the encoder is exported to one of {", ".join(EXPORTS)}, but got '
            f'{to!r}')
    state = _state_for(model, to, encoder, img_size)
    vit = select_encoder(model, encoder)
    facts = encoder_facts(model, images)
    meta = _describe(to, **facts, encoder=encoder, final_norm=vit.final_norm,
                     **meta)
    if to not in _CLASSES:
        write_checkpoint(path, state, meta)
        return
    folder = Path(path).expanduser()
    if folder.suffix:
        raise CheckpointError(
            f'for Hugging Face name a folder, not a file like {path}')
    # transformers asks for the framework's name.
    write_checkpoint(folder / 'model.safetensors', state,
                     dict(meta, format='pt'))
    config = _model_config(vit, to, img_size or vit.img_size[0])
    write_file(folder / 'config.json', json.dumps(config, indent=2) + '\n')


def _describe(to: str, **meta: Any) -> Dict[str, Any]:
    """Add the source of a file to its metadata."""
    return dict(source='cmae_mm', version=__version__, format=to, **meta)


def _model_config(vit: nn.Module, to: str, img_size: int) -> Dict[str, Any]:
    """Return the ``config.json`` of an exported encoder."""
    model_type, architecture = _CLASSES[to]
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
        num_channels=vit.patch_embed.projection.in_channels,
        qkv_bias=True,
        hidden_dropout_prob=0.,
        attention_probs_dropout_prob=0.)


def export_classifier(model: nn.Module, path: str, to: str = 'timm',
                      **meta: Any) -> None:
    """Save a fine-tuned classifier for timm.

    timm's ``vit_*`` models load it with ``global_pool='avg'``.

    Args:
        model (ImageClassifier): ``TransferViT`` with pooled patch tokens, and
            a ``LinearClsHead``.
        path (str): The file, ``.safetensors`` or ``.pth``.
        to (str): 'timm', the only one.
        **meta: Further metadata.

    Raises:
        CheckpointError: If the classifier has other parts.
    """
    if to != 'timm':
        raise CheckpointError(
            f"a classifier is exported to 'timm' alone, but got {to!r}")
    state = model.state_dict()
    if is_hybrid(state):
        raise CheckpointError(
            'timm has no network for a classifier on a hybrid encoder; use it '
            "with this project's TransferConvViT")
    if model.with_neck or not {'head.fc.weight',
                               'backbone.ln2.weight'} <= state.keys():
        raise CheckpointError(
            "for timm a classifier needs out_type='avg_featmap', no neck and "
            'a LinearClsHead')
    write_checkpoint(path, layouts.rename(state, layouts.TIMM_CLASSIFIER),
                     _describe(to, **meta))


def export_cmae(model: nn.Module,
                path: str,
                images: Optional[Mapping[str, Any]] = None,
                **meta: Any) -> None:
    """Save a whole model under the released code's names.

    Args:
        model (CMAE): The model.
        path (str): The file, ``.safetensors`` or ``.pth``.
        images (Mapping[str, Any], optional): See :func:`export_encoder`.
        **meta: Further metadata.

    Raises:
        CheckpointError: If the released code has no such encoder, or the file
            cannot be written.
    """
    state = model.state_dict()
    if is_hybrid(state):
        raise CheckpointError(
            'the released CMAE code has no hybrid encoder; export the encoder '
            'and the pixel decoder to convmae')
    facts = encoder_facts(model, images)
    write_checkpoint(path, layouts.to_cmae(state),
                     _describe('cmae', **facts, **meta))
