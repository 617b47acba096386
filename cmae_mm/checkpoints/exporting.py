"""Encoders, classifiers and whole models, written for other libraries."""
from typing import Any, Callable, Mapping, Optional

from torch import nn

from ..version import __version__
from . import hugging_face, names
from .convmae import decoder_to_convmae, to_convmae
from .encoder_facts import encoder_facts
from .errors import CheckpointError
from .families import is_hybrid
from .files import StateDict, write_checkpoint
from .positions import resample_pos_embed


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
    if encoder == 'online':
        return model.backbone
    if encoder != 'target':
        raise CheckpointError(
            f"the encoder must be 'online' or 'target', but got {encoder!r}")
    if model.target is None:
        raise CheckpointError(
            'the model has no target encoder, since head.contrastive is None')
    if model.target.num_extra_tokens < model.backbone.num_extra_tokens:
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
        state['pos_embed'] = resample_pos_embed(
            state['pos_embed'], img_size // vit.patch_size,
            vit.num_extra_tokens)
    return state


def _with_prefix(state: StateDict) -> StateDict:
    return {f'backbone.{k}': v for k, v in state.items()}


def _to_mmdet(state: StateDict) -> StateDict:
    return _with_prefix(names.to_vit_sam(state))


# Target libraries, and what renames an encoder for each.
EXPORTS: Mapping[str, Callable[[StateDict], StateDict]] = dict(
    mmpretrain=_with_prefix,
    mmdet=_to_mmdet,
    mmseg=_with_prefix,
    timm=names.to_timm,
    hf_vit=hugging_face.to_hf,
    hf_vitmae=hugging_face.to_hf,
    convmae=to_convmae)
# Those of them that are for hybrid encoders.
_HYBRID = ('convmae', 'mmpretrain')


def _check_kind(state: StateDict, to: str) -> None:
    """Check that a library has a network for an encoder."""
    hybrid = is_hybrid(state)
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
        images (Mapping[str, Any], optional): How images are decoded, see
            :func:`~cmae_mm.checkpoints.encoder_facts.encoder_facts`.
        **meta: Further facts that the file states: epoch, recipe...

    Raises:
        CheckpointError: If the model has no such encoder, an argument is not
            allowed, or the file cannot be written.
    """
    if to not in EXPORTS:
        raise CheckpointError(
            f'the encoder is exported to one of {", ".join(EXPORTS)}, but got '
            f'{to!r}')
    vit = select_encoder(model, encoder)
    state = _resized(vit, img_size)
    _check_kind(state, to)
    state = EXPORTS[to](state)
    if to == 'convmae' and encoder == 'online' and img_size is None:
        # its checkpoints of pre-training hold the decoder too
        state |= decoder_to_convmae(model.neck.pixel_decoder.state_dict())
    meta = dict(
        source='cmae_mm',
        version=__version__,
        encoder=encoder,
        format=to,
        final_norm=vit.final_norm,
        **encoder_facts(model, images),
        **meta)
    if to not in hugging_face.CLASSES:
        write_checkpoint(path, state, meta)
        return
    config = hugging_face.model_config(vit, to, img_size or vit.img_size[0])
    hugging_face.write_folder(path, state, config, meta)


def export_classifier(model: nn.Module, path: str, to: str = 'timm',
                      **meta: Any) -> None:
    """Save a fine-tuned classifier for timm.

    timm's ``vit_*`` models take it with ``global_pool='avg'`` (whose norm
    after pooling is ``fc_norm``).

    Args:
        model (ImageClassifier): ``TransferViT`` with pooled patch tokens, and
            a ``LinearClsHead``.
        path (str): The file, ``.safetensors`` or ``.pth``.
        to (str): 'timm', the only one.
        **meta: Further facts that the file states.

    Raises:
        CheckpointError: If the classifier has other parts.
    """
    if to != 'timm':
        raise CheckpointError(
            f"a classifier is exported to 'timm' alone, but got {to!r}")
    vit = model.backbone
    head = getattr(model.head, 'fc', None)
    if is_hybrid(vit.state_dict()):
        raise CheckpointError(
            'timm has no network for a classifier on a hybrid encoder; use it '
            "with this project's TransferConvViT")
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


def export_cmae(model: nn.Module,
                path: str,
                images: Optional[Mapping[str, Any]] = None,
                **meta: Any) -> None:
    """Save the whole pre-training state under the released code's names.

    Args:
        model (CMAE): The model.
        path (str): The file, ``.safetensors`` or ``.pth``.
        images (Mapping[str, Any], optional): See :func:`export_encoder`.
        **meta: Further facts that the file states.

    Raises:
        CheckpointError: If the released code has no such encoder, or the file
            cannot be written.
    """
    if is_hybrid(model.state_dict()):
        raise CheckpointError(
            'the released CMAE code has no hybrid encoder; export the encoder '
            'and the pixel decoder to convmae')
    write_checkpoint(
        path, names.to_cmae(model.state_dict()),
        dict(
            source='cmae_mm',
            version=__version__,
            format='cmae',
            **encoder_facts(model, images),
            **meta))
