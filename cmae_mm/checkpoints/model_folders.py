"""Folders of transformers and timm: the settings beside the weights."""
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from torch import nn

from ..files import write_file
from .errors import CheckpointError

# Epsilon of the layer norms of mmpretrain's, timm's and MAE's encoders, and
# the default of transformers.
NORM_EPS = 1e-6
_HF_NORM_EPS = 1e-12
# Bicubic, in Pillow.
_BICUBIC = 3


def norm_eps(encoder: nn.Module) -> float:
    """Return the epsilon of an encoder's layer norms."""
    return float(getattr(encoder.layers[0].ln1, 'eps', NORM_EPS))


# Read


def read_settings(meta: Mapping[str, Any]) -> Dict[str, Any]:
    """Read the JSON files of a folder of transformers or timm.

    Args:
        meta (Mapping[str, Any]): Their contents by the files' names.

    Returns:
        Dict[str, Any]: See
        :func:`~cmae_mm.checkpoints.encoder_config.read_encoder_facts`.

    Raises:
        CheckpointError: If the settings of images cannot be read.
    """
    config = meta.get('config.json', {})
    images = meta.get('preprocessor_config.json', {})
    facts: Dict[str, Any] = dict(num_heads=config.get('num_attention_heads'))
    if 'num_attention_heads' in config:
        facts['norm_eps'] = config.get('layer_norm_eps', _HF_NORM_EPS)
    try:
        if 'pretrained_cfg' in config:
            facts['num_heads'] = config.get('model_args', {}).get('num_heads')
            images = config['pretrained_cfg']
            facts.update(_scale(images['mean'], images['std']),
                         crop_pct=images.get('crop_pct'))
        elif 'image_mean' in images:
            facts.update(_read_processor(images))
    except (AttributeError, KeyError, TypeError, ValueError,
            ZeroDivisionError) as error:
        raise CheckpointError(
            f'its settings of images cannot be read: {error!r}') from None
    return facts


def _read_processor(images: Mapping[str, Any]) -> Dict[str, Any]:
    """Read the settings of an image processor of transformers."""
    mean, std = images['image_mean'], images['image_std']
    if not images.get('do_normalize', True):
        mean, std = [0.] * len(mean), [1.] * len(std)
    factor = images.get('rescale_factor', 1 / 255)
    facts = _scale(mean, std, factor if images.get('do_rescale', True) else 1)
    sides = (images.get(name) or {} for name in ('size', 'crop_size'))
    short, crop = (s if isinstance(s, int) else s.get(
        'shortest_edge', s.get('height', 0)) for s in sides)
    if images.get('do_resize', True) and short:
        crops = images.get('do_center_crop') and crop
        facts['crop_pct'] = crop / short if crops else 1.
    return facts


def _scale(mean: Sequence[float], std: Sequence[float],
           factor: float = 1 / 255) -> Dict[str, Any]:
    """Convert mean and standard deviation to the units of images."""
    return dict(mean=[v / factor for v in mean],
                std=[v / factor for v in std])


# Write


def _short_side(img_size: int) -> int:
    """Return the length that evaluation resizes the short side to."""
    return round(img_size * 256 / 224)


def is_rgb(facts: Mapping[str, Any]) -> bool:
    """Whether images are 8-bit colours, which the libraries decode alone."""
    return len(facts.get('mean', ())) == 3 and not (
        facts.keys() & {'images', 'value_range'})


def pretrained_cfg(facts: Mapping[str, Any], img_size: int, channels: int,
                   classes: Sequence[str] = (),
                   short_side: Optional[int] = None) -> Dict[str, Any]:
    """Return the ``pretrained_cfg`` of timm.

    Args:
        facts (Mapping[str, Any]): Settings of the encoder.
        img_size (int): Side of the images in pixels.
        channels (int): Number of channels of the images.
        classes (Sequence[str]): Names of the classes. Defaults to none.
        short_side (int, optional): Length in pixels that the short side is
            resized to. Defaults to 256/224 of the images.

    Returns:
        Dict[str, Any]: Plain values.
    """
    ratio = img_size / (short_side or _short_side(img_size))
    config: Dict[str, Any] = dict(
        input_size=[channels, img_size, img_size], interpolation='bicubic',
        # rounded down, since timm rounds the short side down
        crop_pct=math.floor(ratio * 1e4) / 1e4,
        crop_mode='center', num_classes=len(classes), classifier='head')
    if channels == 3:
        config['first_conv'] = 'patch_embed.proj'
    if is_rgb(facts):
        config.update({k: [v / 255 for v in facts[k]]
                       for k in ('mean', 'std')})
    if classes:
        config['label_names'] = list(classes)
    return config


def timm_config(vit: nn.Module, cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the ``config.json`` of a folder of timm.

    Args:
        vit (CMAEViT | TransferViT): The encoder.
        cfg (Mapping[str, Any]): Its :func:`pretrained_cfg`.

    Returns:
        Dict[str, Any]: Plain values.
    """
    arch, count = vit.arch_settings, cfg['num_classes']
    registers = vit.num_extra_tokens - 1
    model_args = dict(
        img_size=cfg['input_size'][1], in_chans=cfg['input_size'][0],
        patch_size=vit.patch_embed.projection.kernel_size[0],
        embed_dim=vit.embed_dims, depth=vit.num_layers,
        num_heads=arch['num_heads'],
        mlp_ratio=arch['feedforward_channels'] / vit.embed_dims,
        global_pool='avg' if count else 'token', reg_tokens=registers,
        no_embed_class=registers > 0,
        final_norm=vit.final_norm or count > 0)
    # any plain name: model_args define all sizes
    return dict(architecture='vit_base_patch16_224', num_classes=count,
                num_features=vit.embed_dims, model_args=model_args,
                pretrained_cfg=dict(cfg))


def hf_config(vit: nn.Module, model_type: str, architecture: str,
              img_size: int, **more: Any) -> Dict[str, Any]:
    """Return the ``config.json`` of a folder of transformers.

    Args:
        vit (CMAEViT | TransferViT): The encoder.
        model_type (str): Type of the model.
        architecture (str): Its class.
        img_size (int): Side of the images in pixels.
        **more: Further settings.

    Returns:
        Dict[str, Any]: Plain values.
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


def hf_decoder(decoder: nn.Module, mask_ratio: float,
               norm_pix: bool) -> Dict[str, Any]:
    """Return the settings of a pixel decoder in ``ViTMAEConfig``."""
    block = decoder.decoder_blocks[0]
    return dict(
        decoder_hidden_size=decoder.decoder_embed.out_features,
        decoder_num_hidden_layers=len(decoder.decoder_blocks),
        decoder_num_attention_heads=block.attn.num_heads,
        decoder_intermediate_size=block.ffn.layers[0][0].out_features,
        mask_ratio=mask_ratio, norm_pix_loss=norm_pix)


def hf_labels(classes: Sequence[str], multilabel: bool) -> Dict[str, Any]:
    """Return the settings of a classifier in a config of transformers."""
    return dict(
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        problem_type='multi_label_classification' if multilabel else
        'single_label_classification')


def hf_processor(facts: Mapping[str, Any], img_size: int,
                 short_side: Optional[int] = None) -> Dict[str, Any]:
    """Return the ``preprocessor_config.json`` of 8-bit colours.

    Its arguments are those of :func:`pretrained_cfg`.
    """
    return dict(
        image_processor_type='BitImageProcessor',
        do_resize=True,
        size=dict(shortest_edge=short_side or _short_side(img_size)),
        resample=_BICUBIC,
        do_center_crop=True,
        crop_size=dict(height=img_size, width=img_size),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[v / 255 for v in facts['mean']],
        image_std=[v / 255 for v in facts['std']],
        do_convert_rgb=True)


def write_settings(folder: Path, meta: Mapping[str, Any],
                   config: Mapping[str, Any],
                   processor: Optional[Mapping[str, Any]] = None) -> None:
    """Write the settings of a folder, and its model card.

    Args:
        folder (Path): The folder.
        meta (Mapping[str, Any]): Metadata of the checkpoint.
        config (Mapping[str, Any]): ``config.json``.
        processor (Mapping[str, Any], optional): ``preprocessor_config.json``.
    """
    files: Dict[str, Any] = {'config.json': config}
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
    lines: List[str] = [
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
