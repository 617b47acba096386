"""Encoders, classifiers and whole models, written for other libraries."""
from typing import Any, Callable, Mapping, Optional

from torch import nn

from ..version import __version__
from . import hugging_face, names
from .encoder_facts import encoder_facts
from .errors import CheckpointError
from .files import StateDict, write_checkpoint
from .positions import resample_pos_embed


def select_encoder(model: nn.Module, encoder: str) -> nn.Module:
    """Take the online or the target encoder of a model.

    Args:
        model (CMAE): The model.
        encoder (str): 'online' or 'target'.

    Returns:
        CMAEViT: The encoder.

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
        state['pos_embed'] = resample_pos_embed(
            state['pos_embed'], img_size // vit.patch_size)
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
    hf_vitmae=hugging_face.to_hf)


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
    state = EXPORTS[to](_resized(vit, img_size))
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
    """
    write_checkpoint(
        path, names.to_cmae(model.state_dict()),
        dict(
            source='cmae_mm',
            version=__version__,
            format='cmae',
            **encoder_facts(model, images),
            **meta))
