"""Export of encoders, classifiers and whole models to other libraries."""
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..dependencies import WEIGHT_SUFFIXES
from ..files import write_file
from ..image_size import ImageSize, divide, resize_size, to_pair, to_size
from ..version import __version__
from . import CheckpointError, layouts
from .encoder_config import KEY, encoder_record, norm_eps
from .load import select_encoder
from .read import StateDict, write_checkpoint
from .state_dict import is_hybrid, resample_pos_embed

# Functions that convert an encoder to the parameter names of a library.
EXPORTS: Mapping[str, Callable[[StateDict], StateDict]] = dict(
    mmpretrain=layouts.with_prefix,
    mmdet=layouts.to_mmdet,
    mmseg=layouts.with_prefix,
    timm=layouts.to_timm,
    hf=layouts.to_hf_vit,
    hf_vitmae=layouts.to_hf,
    convmae=layouts.to_convmae)
# Bicubic, in Pillow.
_BICUBIC = 3
# Libraries with hybrid encoders.
_HYBRID = ('convmae', 'mmpretrain')
# Type and class of Hugging Face's models.
_CLASSES = dict(
    hf=('vit', 'ViTModel'), hf_vitmae=('vit_mae', 'ViTMAEModel'))


def _state_for(model: nn.Module, to: str, encoder: str,
               img_size: ImageSize | None,
               decoder: StateDict) -> StateDict:
    """Convert an encoder to a library's names."""
    vit = select_encoder(model, encoder)
    if encoder == 'target' and (
            model.target.num_extra_tokens < vit.num_extra_tokens):
        raise CheckpointError(
            'this target encoder has no class token and cannot be exported; '
            'export the online encoder')
    state = dict(vit.state_dict())
    try:
        grid = divide(img_size or vit.img_size, vit.patch_size)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    state['pos_embed'] = resample_pos_embed(
        state['pos_embed'], grid, vit.num_extra_tokens, vit.patch_resolution)
    _check_kind(is_hybrid(state), to)
    if to.startswith('hf') and vit.num_extra_tokens != 1:
        raise CheckpointError(
            'an encoder with register tokens, or without one class token, is '
            f'exported to timm or mmpretrain, but got {to}')
    if to == 'hf_vitmae' and grid[0] != grid[1]:
        raise CheckpointError(
            "transformers' ViTMAE supports square images only; export this "
            'encoder to hf')
    if to == 'mmdet':
        return layouts.to_mmdet(state, grid)
    if to == 'hf_vitmae' and decoder:
        return layouts.to_hf_pretraining(state, decoder)
    return EXPORTS[to](state) | layouts.decoder_to_convmae(decoder)


def _check_kind(hybrid: bool, to: str) -> None:
    """Check that a library supports this kind of encoder."""
    if hybrid and to not in _HYBRID:
        raise CheckpointError(
            f'a hybrid encoder is exported to {" or ".join(_HYBRID)} only, '
            f'since {to} has no such network; detection and segmentation load '
            'the checkpoint directly, with the backbones of this project')
    if not hybrid and to == 'convmae':
        raise CheckpointError(
            'a plain vision transformer is not exported to convmae, whose '
            "encoder has convolution stages; take one of "
            f'{", ".join(k for k in EXPORTS if k != to)}')


def export_encoder(model: nn.Module,
                   path: str,
                   to: str = 'mmpretrain',
                   encoder: str = 'online',
                   img_size: ImageSize | None = None,
                   images: Mapping[str, Any] | None = None,
                   **meta: Any) -> None:
    """Save an encoder for another library.

    Args:
        model (CMAE): The pre-trained model.
        path (str): The file, ``.safetensors`` or ``.pth``; for Hugging Face a
            folder, which gets ``model.safetensors`` and ``config.json``.
        to (str): One of :data:`EXPORTS`. Defaults to 'mmpretrain'.
        encoder (str): 'online' or 'target'. The released recipe's target has
            no final norm. Defaults to 'online'.
        img_size (int | Sequence[int], optional): Resample position embeddings
            to this image size in pixels: the side of a square, or (height,
            width). Defaults to the model's.
        images (Mapping[str, Any], optional): Settings for decoding images,
            see :func:`~cmae_mm.checkpoints.encoder_config.encoder_record`.
        **meta: Further metadata: epoch, recipe...

    Raises:
        CheckpointError: If the model has no such encoder, an argument is not
            allowed, or the file cannot be written.
    """
    if to not in EXPORTS:
        raise CheckpointError(
            f'the encoder is exported to one of {", ".join(EXPORTS)}, but got '
            f'{to!r}')
    vit = select_encoder(model, encoder)
    decoder = model.neck.pixel_decoder if (
        to in ('convmae', 'hf_vitmae') and encoder == 'online'
        and img_size is None) else nn.Module()
    state = _state_for(
        model, to, encoder, img_size, dict(decoder.state_dict()))
    size = to_size(to_pair(img_size or vit.img_size))
    record = encoder_record(model, images, size)
    meta = _describe(to, **record, encoder=encoder, final_norm=vit.final_norm,
                     **meta)
    if to == 'timm':
        _write_timm(path, state, vit, meta, pretrained_cfg(
            record[KEY], size, vit.in_channels))
    elif to in _CLASSES:
        config = hf_config(vit, *_CLASSES[to], size)
        if to == 'hf':
            config.update(pooler_act='linear', pooler_output_size=None)
        elif hasattr(decoder, 'decoder_blocks'):
            block = decoder.decoder_blocks[0]
            config.update(
                architectures=['ViTMAEForPreTraining'],
                decoder_hidden_size=decoder.decoder_embed.out_features,
                decoder_num_hidden_layers=len(decoder.decoder_blocks),
                decoder_num_attention_heads=block.attn.num_heads,
                decoder_intermediate_size=block.ffn.layers[0][0].out_features,
                mask_ratio=vit.mask_ratio,
                norm_pix_loss=model.head.reconstruction.norm_pix)
        _write_hf(path, state, record[KEY], meta, config)
    else:
        write_checkpoint(path, state, meta)


def _describe(to: str, **meta: Any) -> dict[str, Any]:
    """Add the source of a file to its metadata."""
    return dict(source='cmae_mm', version=__version__, format=to, **meta)


def _write_timm(path: str, state: StateDict, vit: nn.Module,
                meta: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Write a file, or a folder with ``config.json``, for timm."""
    meta = dict(meta, pretrained_cfg=json.dumps(cfg))
    folder = Path(path).expanduser()
    if folder.suffix.lower() in WEIGHT_SUFFIXES:
        write_checkpoint(path, state, meta)
        return
    write_checkpoint(folder / 'model.safetensors', state, meta)
    write_settings(folder, meta, timm_config(vit, cfg))


def _write_hf(path: str, state: StateDict, record: Mapping[str, Any],
              meta: dict[str, Any], config: Mapping[str, Any],
              short_side: int | None = None) -> None:
    """Write a folder for transformers."""
    folder = Path(path).expanduser()
    if folder.suffix.lower() in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f'for Hugging Face name a folder, not a file like {path}')
    # Required by transformers.
    write_checkpoint(folder / 'model.safetensors', state,
                     dict(meta, format='pt'))
    processor = hf_processor(record, config['image_size'], short_side) if (
        is_rgb(record)) else None
    write_settings(folder, meta, config, processor)


def export_classifier(model: nn.Module, path: str, to: str = 'timm',
                      classes: Sequence[str] = (),
                      images: Mapping[str, Any] | None = None,
                      short_side: int | None = None,
                      **meta: Any) -> None:
    """Save a fine-tuned classifier for timm or transformers.

    timm's ``vit_*`` models load it with ``global_pool='avg'``, transformers'
    ``AutoModelForImageClassification`` as ``BeitForImageClassification``,
    which uses the same pooling.

    Args:
        model (ImageClassifier): ``TransferViT`` with pooled patch tokens, and
            a linear head.
        path (str): The file, ``.safetensors`` or ``.pth``, or a folder; for
            transformers a folder.
        to (str): 'timm' or 'hf'. Defaults to 'timm'.
        classes (Sequence[str]): Names of the classes. Defaults to their
            numbers.
        images (Mapping[str, Any], optional): See :func:`export_encoder`.
        short_side (int, optional): Shorter side of resized images in pixels.
            Defaults to 256/224 of the image size.
        **meta: Further metadata.

    Raises:
        CheckpointError: If the classifier has other parts.
    """
    if to not in ('timm', 'hf'):
        raise CheckpointError(
            f"a classifier is exported to 'timm' or 'hf', but got {to!r}")
    state = dict(model.state_dict())
    if is_hybrid(state):
        raise CheckpointError(
            'timm and transformers have no network for a classifier on a '
            "hybrid encoder; use it with this project's TransferConvViT")
    if model.with_neck:
        _fold_neck(model.neck, state)
    if not {'head.fc.weight', 'backbone.ln2.weight'} <= state.keys():
        raise CheckpointError(
            f"for {to} a classifier needs out_type='avg_featmap' and a linear "
            'head')
    vit, count = model.backbone, len(state['head.fc.weight'])
    size = to_size(vit.img_size)
    channels = vit.patch_embed.projection.in_channels
    state = {k: v for k, v in state.items()
             if k.startswith(('backbone.', 'head.fc.'))}
    record = encoder_record(model, images)
    meta = _describe(to, **record, **meta)
    classes = list(classes) or [str(number) for number in range(count)]
    if to == 'timm':
        _write_timm(
            path, layouts.rename(state, layouts.TIMM_CLASSIFIER), vit, meta,
            pretrained_cfg(record[KEY], size, channels, classes, short_side))
        return
    if vit.final_norm or vit.num_extra_tokens != 1:
        raise CheckpointError(
            'transformers has no classifier that normalises patch tokens '
            'before and after their mean, or does not have one class token; '
            'export it to timm')
    config = hf_config(
        vit, 'beit', 'BeitForImageClassification', size,
        use_absolute_position_embeddings=True, use_mean_pooling=True,
        layer_scale_init_value=0, use_mask_token=False,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        problem_type='multi_label_classification' if 'MultiLabel' in type(
            model.head).__name__ else 'single_label_classification')
    _write_hf(path, layouts.to_hf_classifier(state), record[KEY], meta, config,
              short_side)


def _fold_neck(neck: nn.Module, state: StateDict) -> None:
    """Multiply the batch norm of a linear probe into the head, in place."""
    norm = getattr(neck, 'bn', None)
    if not isinstance(norm, nn.BatchNorm1d) or (
            'head.fc.weight' not in state):
        raise CheckpointError(
            f'a classifier with a {type(neck).__name__} is not exported')
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    weight = state['head.fc.weight']
    state['head.fc.bias'] = state['head.fc.bias'] + weight @ shift
    state['head.fc.weight'] = weight * scale


def export_cmae(model: nn.Module,
                path: str,
                images: Mapping[str, Any] | None = None,
                **meta: Any) -> None:
    """Save a whole model with the released code's parameter names.

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
    record = encoder_record(model, images)
    write_checkpoint(path, layouts.to_cmae(state),
                     _describe('cmae', **record, **meta))


# Folders of transformers and timm: files in addition to the weights


def is_rgb(record: Mapping[str, Any]) -> bool:
    """Whether images are 8-bit colours; the libraries decode no others."""
    return len(record.get('mean', ())) == 3 and not (
        record.keys() & {'images', 'value_range'})


def pretrained_cfg(record: Mapping[str, Any], img_size: ImageSize,
                   channels: int, classes: Sequence[str] = (),
                   short_side: int | None = None) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` of timm.

    Args:
        record (Mapping[str, Any]): Settings of the encoder.
        img_size (int | Sequence[int]): Size of the images in pixels.
        channels (int): Number of channels of the images.
        classes (Sequence[str]): Names of the classes. Defaults to none.
        short_side (int, optional): See :func:`resize_size`.

    Returns:
        dict[str, Any]: Plain values.
    """
    pair = to_pair(img_size)
    ratio = min(pair) / min(resize_size(pair, short_side))
    config: dict[str, Any] = dict(
        input_size=[channels, *pair], interpolation='bicubic',
        # rounded down, since timm rounds the short side down
        crop_pct=math.floor(ratio * 1e4) / 1e4,
        crop_mode='center', num_classes=len(classes), classifier='head')
    if channels == 3:
        config['first_conv'] = 'patch_embed.proj'
    if is_rgb(record):
        config.update({k: [v / 255 for v in record[k]]
                       for k in ('mean', 'std')})
    if classes:
        config['label_names'] = list(classes)
    return config


def timm_config(vit: nn.Module, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a folder of timm.

    Args:
        vit (CMAEViT | TransferViT): The encoder.
        cfg (Mapping[str, Any]): Its :func:`pretrained_cfg`.

    Returns:
        dict[str, Any]: Plain values.
    """
    arch, count = vit.arch_settings, cfg['num_classes']
    extra = vit.num_extra_tokens
    registers = max(extra - 1, 0)
    model_args = dict(
        img_size=to_size(cfg['input_size'][1:]), in_chans=cfg['input_size'][0],
        patch_size=vit.patch_embed.projection.kernel_size[0],
        embed_dim=vit.embed_dims, depth=vit.num_layers,
        num_heads=arch['num_heads'],
        mlp_ratio=arch['feedforward_channels'] / vit.embed_dims,
        global_pool='avg' if count else 'token', reg_tokens=registers,
        no_embed_class=registers > 0, class_token=extra > 0,
        final_norm=vit.final_norm or count > 0)
    if not extra and not count:
        model_args.update(global_pool='avg', fc_norm=False)
    # any name, since model_args define all sizes
    return dict(architecture='vit_base_patch16_224', num_classes=count,
                num_features=vit.embed_dims, model_args=model_args,
                pretrained_cfg=dict(cfg))


def hf_config(vit: nn.Module, model_type: str, architecture: str,
              img_size: ImageSize, **more: Any) -> dict[str, Any]:
    """Return the ``config.json`` of a folder of transformers.

    Args:
        vit (CMAEViT | TransferViT): The encoder.
        model_type (str): Type of the model.
        architecture (str): Its class.
        img_size (int | Sequence[int]): Size of the images in pixels.
        **more: Further settings.

    Returns:
        dict[str, Any]: Plain values.
    """
    return dict(
        architectures=[architecture],
        model_type=model_type,
        hidden_size=vit.embed_dims,
        num_hidden_layers=vit.num_layers,
        num_attention_heads=vit.arch_settings['num_heads'],
        intermediate_size=vit.arch_settings['feedforward_channels'],
        hidden_act='gelu',
        layer_norm_eps=norm_eps(vit),
        image_size=img_size,
        patch_size=vit.patch_embed.projection.kernel_size[0],
        num_channels=vit.patch_embed.projection.in_channels,
        qkv_bias=True,
        hidden_dropout_prob=0.,
        attention_probs_dropout_prob=0.,
        **more)


def hf_processor(record: Mapping[str, Any], img_size: ImageSize,
                 short_side: int | None = None) -> dict[str, Any]:
    """Return the ``preprocessor_config.json`` of 8-bit colours.

    Its arguments are those of :func:`pretrained_cfg`. Images for an encoder
    of rectangles are stretched to the crop's aspect.
    """
    height, width = to_pair(img_size)
    rows, columns = resize_size(img_size, short_side)
    return dict(
        image_processor_type='BitImageProcessor',
        do_resize=True,
        size=dict(shortest_edge=rows) if height == width else dict(
            height=rows, width=columns),
        resample=_BICUBIC,
        do_center_crop=True,
        crop_size=dict(height=height, width=width),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[v / 255 for v in record['mean']],
        image_std=[v / 255 for v in record['std']],
        do_convert_rgb=True)


def write_settings(folder: Path, meta: Mapping[str, Any],
                   config: Mapping[str, Any],
                   processor: Mapping[str, Any] | None = None) -> None:
    """Write the settings of a folder, and its model card.

    Args:
        folder (Path): The folder.
        meta (Mapping[str, Any]): Metadata of the checkpoint.
        config (Mapping[str, Any]): ``config.json``.
        processor (Mapping[str, Any], optional): ``preprocessor_config.json``.
    """
    files: dict[str, Any] = {'config.json': config}
    if processor:
        files['preprocessor_config.json'] = processor
    for name, content in files.items():
        write_file(folder / name, json.dumps(content, indent=2) + '\n')
    write_file(folder / 'README.md', _model_card(
        meta, config, bool(processor) or 'mean' in config.get(
            'pretrained_cfg', {})))


def _model_card(meta: Mapping[str, Any], config: Mapping[str, Any],
                is_rgb: bool) -> str:
    """Return the text of a model card."""
    library = 'timm' if 'pretrained_cfg' in config else 'transformers'
    classes = config.get('id2label') or config.get('num_classes')
    task = 'image-classification' if classes else 'image-feature-extraction'
    lines: list[str] = [
        '---', f'library_name: {library}', f'pipeline_tag: {task}',
        'tags: [cmae, vision]', '---', '',
        '# Vision transformer, pre-trained with CMAE', '']
    if library == 'timm':
        lines += ['```python', 'import timm',
                  "model = timm.create_model('local-dir:FOLDER', "
                  'pretrained=True)', '```']
    else:
        lines += ['```python', 'from transformers import pipeline',
                  f"model = pipeline('{task}', 'FOLDER')", '```']
    lines += ['', 'FOLDER is the path of this folder.']
    if not classes:
        lines += [
            '', 'The feature of an image in `cmae knn` and `cmae embed` is '
            'the mean of its patch tokens, without the first '
            f'{config.get("model_args", {}).get("reg_tokens", 0) + 1} '
            'token(s).']
    if not is_rgb:
        lines += ['', 'The images are not 8-bit colours: decode and '
                  'normalise them as below.']
    lines += ['', '| | |', '|---|---|']
    lines += [f'| {k} | `{v}` |' for k, v in meta.items()
              if k not in ('format', 'pretrained_cfg')]
    return '\n'.join(lines) + '\n'
