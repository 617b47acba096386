"""Export of checkpoints to other libraries, and import from them."""
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..config import ConfigError, load_config
from ..dependencies import WEIGHT_SUFFIXES
from ..image_size import ImageSize
from .arguments import (Checkpoint, ConfigName, ImgSize, Output, OutputFile,
                        OutputFolder, Overrides, PathLike, check_onnx_file,
                        check_paths, command)

if TYPE_CHECKING:
    from torch import nn

# The released code's names for the whole model, ONNX, and the libraries of
# `EXPORTS` in `checkpoints/export.py`.
Format = Literal['cmae', 'onnx', 'convmae', 'hf', 'hf_vitmae', 'mmdet',
                 'mmpretrain', 'mmseg', 'timm']
# The libraries that classifiers are exported to.
CLASSIFIERS = ('timm', 'hf')
# A file of weights that is written.
WeightFile = Annotated[PathLike, Output('.safetensors', '.pth')]


def _is_finished(folder: PathLike) -> bool:
    """Return whether a path is a folder of `cmae finetune`."""
    return (Path(folder) / 'best.pth').is_file()


def _check_export(config: PathLike, checkpoint: PathLike,
                  out: PathLike | None, to: str | None, encoder: str,
                  img_size: ImageSize | None, dtype: str,
                  **others: Any) -> None:
    """Check paths, and options that contradict each other."""
    if dtype != 'float32' and to != 'onnx' and not (
            to is None and _is_finished(config)):
        raise ConfigError(f'--dtype {dtype} needs --to onnx')
    hints: dict[str, Any]
    if _is_finished(config):
        out = out or checkpoint
        if to in CLASSIFIERS:
            hints = dict(out=_kind_of_output(out, to))
            check_paths(hints, dict(out=out))
        elif to not in (None, 'onnx'):
            raise ConfigError('a folder of `cmae finetune` can be exported to '
                              'onnx, timm or hf only')
        else:
            check_onnx_file(out)
        return
    if out is None:
        folder = Path(config)
        lack = ('has no best.pth' if folder.is_dir() else 'is no folder'
                if folder.exists() else 'does not exist')
        raise ConfigError(
            f'{config} {lack}; use `cmae export FOLDER OUT` for a folder of '
            '`cmae finetune`, or CONFIG CHECKPOINT OUT --to LIBRARY')
    hints = dict(config=ConfigName, checkpoint=Checkpoint)
    check_paths(hints, dict(config=config, checkpoint=checkpoint))
    if to is None:
        raise ConfigError('--to is missing; it names the library to export '
                          'the encoder for')
    if to == 'cmae' and (img_size is not None or encoder != 'online'):
        raise ConfigError('--to cmae exports the whole model with both '
                          'encoders; remove --encoder and --img-size')
    if to == 'onnx':
        check_onnx_file(out)
    hints['out'] = OutputFile if to == 'onnx' else _kind_of_output(out, to)
    check_paths(hints, dict(config=config, checkpoint=checkpoint, out=out))


def _kind_of_output(out: PathLike, to: str) -> Any:
    """Return whether an export is a file or a folder."""
    is_file = Path(out).suffix.lower() in WEIGHT_SUFFIXES
    if is_file and to.startswith('hf'):
        raise ConfigError(
            f'for Hugging Face name a folder, not a file like {out}')
    is_folder = to.startswith('hf') or to == 'timm' and not is_file
    return OutputFolder if is_folder else WeightFile


@command(check=_check_export)
def export(config: PathLike,
           checkpoint: PathLike,
           out: PathLike | None = None,
           /,
           *,
           to: Format | None = None,
           encoder: Literal['online', 'target'] = 'online',
           img_size: ImgSize = None,
           dtype: Literal['float32', 'float16'] = 'float32',
           cfg_options: Overrides = ()) -> dict[str, Any]:
    """Write an encoder for timm, Hugging Face and others.

    Every key is checked against the config's model.

    Example::

        $ cmae export cmae_vit-b_300e epoch_300.pth vit.safetensors --to timm
        $ cmae export classifier model.onnx
        $ cmae export classifier FOLDER --to hf

    Args:
        config: Pre-training config: a file, or the name of a packaged one. For
            --to timm, hf and onnx also a fine-tuning config. Or a folder of
            `cmae finetune`, followed by OUT only: its whole model is exported
            to ONNX, timm or hf.
        checkpoint: A checkpoint of the config's model.
        out: File to write, .safetensors or .pth; for Hugging Face a folder;
            for timm a file or a folder; for ONNX .onnx.
        to: Target library. hf: folder for AutoModel of transformers.
            hf_vitmae: folder for ViTMAEForPreTraining, with the pixel decoder.
            cmae: whole model with the parameter names of the released code.
            convmae: hybrid encoder and pixel decoder with the names of
            ConvMAE. onnx: file that computes features of images that are not
            normalised.
        encoder: online, the trained encoder, or target, its moving average.
            Defaults to online.
        img_size: Resample position embeddings to this image size in pixels:
            the side of a square, or height and width. Defaults to the model's.
        dtype: Data type of the weights in an ONNX file; inputs and outputs are
            float32. Defaults to float32.
        cfg_options: Settings of the config to override. Nested keys are
            written with dots.

    Returns:
        dict[str, Any]: ``checkpoint``, ``to`` and ``out``; of ONNX the largest
        ``difference`` between the outputs of ONNX Runtime and torch.

    Raises:
        ConfigError: If options contradict each other, or the config is
            another.
        CheckpointError: If the checkpoint cannot be loaded or written.
        ArgumentError: If a file is missing, or an ONNX file has another
            ending.
        MissingLibrary: If a library for ONNX is not installed.
    """
    if _is_finished(config):
        from ..finetuning.export import export_folder, export_model
        file = str(out or checkpoint)
        if to in CLASSIFIERS:
            export_folder(config, file, str(to))
            print(f'Wrote {file}')
            return dict(out=file, to=to)
        return dict(out=file, difference=export_model(config, file, dtype))
    from mmpretrain.models import ImageClassifier

    from ..checkpoints import (export_classifier, export_cmae, export_encoder,
                               load_model, prefix_errors, read_checkpoint,
                               read_encoder_record)
    model = _build_model(config, cfg_options)
    is_classifier = isinstance(model, ImageClassifier) and to != 'cmae'
    if not is_classifier:
        _require_cmae(model, config)
    with prefix_errors(str(checkpoint)):
        state, meta = read_checkpoint(str(checkpoint))
        record = read_encoder_record(meta)
        images = record.get('images')
        report = load_model(model, state, record)
    result: dict[str, Any] = dict(
        checkpoint=str(checkpoint), to=to, out=str(out))
    source = _describe(config, checkpoint, meta)
    if to == 'onnx':
        from ..checkpoints.onnx_export import export_onnx
        from .encoder import encoder_of
        with prefix_errors(str(checkpoint)):
            loaded = encoder_of(model, encoder, img_size, images)
        result['difference'] = export_onnx(
            loaded, str(out), dtype, **source)
        if is_classifier:
            print('not exported: the head; `cmae export FOLDER OUT` exports '
                  'the whole model of `cmae finetune`')
    elif is_classifier:
        classes = (meta.get('dataset_meta') or {}).get('classes') or ()
        export_classifier(model, str(out), str(to), classes, images, **source)
    elif to == 'cmae':
        export_cmae(model, str(out), images, **source)
    else:
        export_encoder(model, str(out), str(to), encoder, img_size, images,
                       **source)
    print(f'{checkpoint}: {report}\nWrote {out}')
    return result


@command()
def import_(config: ConfigName,
            checkpoint: Checkpoint,
            out: WeightFile,
            *,
            cfg_options: Overrides = ()) -> dict[str, Any]:
    """Convert a released CMAE, MAE or ConvMAE checkpoint.

    The kind of checkpoint is detected from its parameter names. Every key is
    checked against the config's model.

    Example::

        $ cmae import cmae_vit-b_300e official.pth cmae.pth
        $ cmae import cmae_vit-b_300e mae_pretrain_vit_base.pth \
init.safetensors
        $ cmae import cmae_convvit-b_300e convmae_base.pth init.safetensors

    Args:
        config: Pre-training config: a file, or the name of a packaged one.
        checkpoint: A released CMAE checkpoint, an MAE or ConvMAE one, or an
            encoder with timm's or Hugging Face's names.
        out: File to write, .safetensors or .pth.
        cfg_options: Settings of the config to override. Nested keys are
            written with dots.

    Returns:
        dict[str, Any]: ``checkpoint``, its ``kind``, and ``out``.

    Raises:
        ConfigError: If the config is not one of pre-training.
        CheckpointError: If the checkpoint is none of these, or cannot be
            loaded or written.
    """
    from ..checkpoints import (CheckpointError, encoder_record, load_model,
                               prefix_errors, write_checkpoint)
    from ..checkpoints.encoder_config import KEY
    from ..checkpoints.layouts import FOREIGN, RELEASED, with_prefix
    from ..checkpoints.load import fit, read_encoder
    model: Any = _build_model(config, cfg_options)
    _require_cmae(model, config)
    with prefix_errors(str(checkpoint)):
        (state, meta), found, record = read_encoder(
            str(checkpoint), img_size=model.backbone.img_size)
        lines = list(found.lines)
        if found.kind == RELEASED:
            report = load_model(model, state, record)
            imported = model.state_dict()
            use = 'the whole pre-training state, for load_from'
        elif found.kind in FOREIGN:
            fitted = fit(model.backbone, found)
            model.backbone.load_state_dict(fitted.state, strict=False)
            report, lines = fitted.report, fitted.lines[1:]
            imported = with_prefix(model.backbone.state_dict())
            use = 'an encoder, for init_cfg'
        else:
            raise CheckpointError(
                f'it is {found.kind} with the parameter names of this project '
                'and needs no conversion')
    # Other channels than the source's are normalised as the config says.
    of_images = ('mean', 'std', 'images', 'value_range', 'crop_pct')
    source = {k: record[k] for k in (
        'num_heads', 'norm_eps', *([] if report.inflated else of_images))
        if k in record}
    metadata = encoder_record(model)
    metadata[KEY] = {**metadata[KEY], **source}
    write_checkpoint(str(out), imported, {
        **_describe(config, checkpoint, meta), **metadata})
    print('\n'.join([f'{checkpoint} is {found.kind}: {report}', *lines,
                     f'Wrote {out}, {use}']))
    return dict(checkpoint=str(checkpoint), kind=found.kind, out=str(out))


def _build_model(config: PathLike, cfg_options: Overrides) -> 'nn.Module':
    """Build the config's model."""
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from ..checkpoints.load import model_of
    cfg = load_config(str(config), cfg_options)
    init_default_scope('mmpretrain')
    return MODELS.build(model_of(cfg))


def _require_cmae(model: 'nn.Module', config: PathLike) -> None:
    """Check that a config is one of pre-training."""
    from ..models import CMAE
    if not isinstance(model, CMAE):
        raise ConfigError(
            'the config must be a pre-training config with a model of type '
            f"'CMAE', but the model of {config} is a {type(model).__name__}")


def _describe(config: PathLike, checkpoint: PathLike,
              meta: dict[str, Any]) -> dict[str, Any]:
    """Return the source of a converted checkpoint, for its metadata."""
    return dict(
        recipe=str(config), converted_from=str(checkpoint),
        **{k: meta[k] for k in ('epoch', 'iter') if k in meta})
