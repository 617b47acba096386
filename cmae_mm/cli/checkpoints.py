"""Exporting encoders to other libraries, importing from them."""
import argparse
from typing import TYPE_CHECKING, Any, Dict

from ..config import ConfigError, load_config, remember
from ..files import check_output
from .arguments import (
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_encoder,
    add_out,
    at_least,
    is_finished,
)
from .command import Command, Result

if TYPE_CHECKING:
    from torch import nn

# `EXPORTS` of the checkpoints' room, which a test checks: it is not imported
# for --help. And the whole state, under the released code's names.
ENCODERS = ('convmae', 'hf_vit', 'hf_vitmae', 'mmdet', 'mmpretrain', 'mmseg',
            'timm')
WHOLE = 'cmae'
ONNX = 'onnx'


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what both commands have behind their positional arguments."""
    parser.add_argument(
        '--allow-partial', action='store_true',
        help='go on although keys are missing, unexpected or misshapen')
    add_cfg_options(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of exporting."""
    add_config(parser, 'pre-training config, or with --to timm a fine-tuning '
               'one: its model gives the sizes; or a folder of `cmae '
               'finetune`, followed by OUT alone, an ONNX file of the whole '
               'model; a file')
    add_checkpoint(parser, "a checkpoint of the config's model")
    parser.add_argument(
        'out', metavar='OUT', nargs='?',
        help='.safetensors or .pth file to write; for Hugging Face a folder; '
        '.onnx for ONNX')
    parser.add_argument(
        '--to', choices=(WHOLE, ONNX, *ENCODERS),
        help='the library that the encoder is for; cmae: the whole state '
        "under the released code's names; convmae: a hybrid encoder and its "
        "pixel decoder under ConvMAE's; onnx: a file that takes images as "
        'they are and gives features')
    add_encoder(parser)
    parser.add_argument(
        '--img-size', type=at_least(1), metavar='PIXELS',
        help='resample the positions to images of this side')
    add_common(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of importing."""
    add_config(parser, 'pre-training config: its model gives the sizes; a '
               'file')
    add_checkpoint(
        parser, "a released CMAE checkpoint, an MAE encoder under FAIR's or "
        "timm's names, or a ConvMAE checkpoint")
    add_out(parser, '.safetensors or .pth file to write')
    add_common(parser)


def check(args: argparse.Namespace) -> None:
    """Find contradictions.

    Raises:
        ConfigError: If an option is of no use.
        OSError: If the output cannot be written.
        ArgumentError: If an ONNX file would have another ending.
        MissingLibrary: If a library for it is not installed.
    """
    if is_finished(args.config):
        if getattr(args, 'to', '') not in (None, ONNX):
            raise ConfigError('a folder of `cmae finetune` is exported to '
                              f'{ONNX} alone, and not imported')
        args.out = args.out or args.checkpoint
        return
    if args.out is None:
        raise ConfigError('CONFIG, CHECKPOINT and OUT are needed, or a folder '
                          'of `cmae finetune` and OUT')
    if getattr(args, 'to', ONNX) is None:
        raise ConfigError('--to is needed: the library that the encoder is '
                          'for')
    if getattr(args, 'to', None) == WHOLE and (
            args.img_size is not None or args.encoder != 'online'):
        raise ConfigError('--to cmae exports the whole state, with both '
                          'encoders as they are: leave --encoder and '
                          '--img-size out')
    if getattr(args, 'to', None) == ONNX:
        from ..apis.arguments import check_onnx_file
        check_onnx_file(args.out)
    else:
        to_folder = str(getattr(args, 'to', None)).startswith('hf_')
        check_output(args.out, is_folder=to_folder)


def build_model(args: argparse.Namespace) -> 'nn.Module':
    """Build the config's model."""
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    init_default_scope('mmpretrain')
    # as mmengine's runner does it: exports say how images are normalised
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(cfg.model)


def require_cmae(model: 'nn.Module', args: argparse.Namespace) -> None:
    """Check that a config is one of pre-training.

    Raises:
        ConfigError: If its model is no CMAE.
    """
    from ..models import CMAE
    if not isinstance(model, CMAE):
        raise ConfigError(
            'the config must be one of pre-training, with a model of type '
            f"'CMAE', but the model of {args.config} is a "
            f'{type(model).__name__}')


def describe(args: argparse.Namespace, meta: Dict[str, Any]) -> Dict[str, Any]:
    """Say where a converted checkpoint comes from."""
    noted: Dict[str, Any] = {
        k: meta[k] for k in ('epoch', 'iter') if k in meta
    }
    return dict(recipe=args.config, converted_from=args.checkpoint, **noted)


def export(args: argparse.Namespace) -> Result:
    """Load the whole checkpoint, and write what was asked for."""
    from mmpretrain.models import ImageClassifier

    if is_finished(args.config):
        from ..apis.finished_model import export_model
        return dict(out=args.out,
                    difference=export_model(args.config, args.out))
    from ..checkpoints import (
        export_classifier,
        export_cmae,
        export_encoder,
        load_model,
        naming,
        read_checkpoint,
        read_encoder_facts,
    )
    model = build_model(args)
    is_classifier = isinstance(model, ImageClassifier) and args.to != WHOLE
    if not is_classifier:
        require_cmae(model, args)
    with naming(args.checkpoint):
        state, meta = read_checkpoint(args.checkpoint)
        images = read_encoder_facts(meta).get('images')
        report = load_model(model, state, args.allow_partial)
    noted = describe(args, meta)
    result: Result = dict(
        checkpoint=args.checkpoint, to=args.to, out=args.out)
    if args.to == ONNX:
        result['difference'] = _export_onnx(model, args, images, noted)
    elif is_classifier:
        export_classifier(model, args.out, args.to, **noted)
    elif args.to == WHOLE:
        export_cmae(model, args.out, images, **noted)
    else:
        export_encoder(model, args.out, args.to, args.encoder, args.img_size,
                       images, **noted)
    print(f'{args.checkpoint}: {report}')
    print(f'Wrote {args.out}')
    return result


def _export_onnx(model: 'nn.Module', args: argparse.Namespace,
                 images: Any, noted: Dict[str, Any]) -> float:
    """Write an ONNX file, with the heads and normalisation of the config."""
    from ..apis.encoder import encoder_of
    from ..checkpoints import naming
    from ..checkpoints.onnx_export import export_onnx
    with naming(args.checkpoint):
        encoder = encoder_of(model, args.encoder, args.img_size, images)
    difference = export_onnx(encoder, args.out, **noted)
    print(f'features of ONNX Runtime and of torch differ by {difference:.1e} '
          'at most')
    return difference


def import_(args: argparse.Namespace) -> Result:
    """Find out what the checkpoint is, and write it under our names."""
    from ..checkpoints import (
        CheckpointError,
        find_encoder,
        load_model,
        load_state,
        naming,
        read_checkpoint,
        write_checkpoint,
    )
    from ..checkpoints.layouts import FOREIGN, RELEASED, with_prefix
    model = build_model(args)
    require_cmae(model, args)
    with naming(args.checkpoint):
        state, meta = read_checkpoint(args.checkpoint)
        found = find_encoder(state)
        if found.kind == RELEASED:
            report = load_model(model, state, args.allow_partial)
            imported = model.state_dict()
            use = 'the whole pre-training state, for load_from'
        elif found.kind in FOREIGN:
            report = load_state(
                model.backbone, found.state, args.allow_partial)
            imported = with_prefix(model.backbone.state_dict())
            use = 'an encoder, for init_cfg'
        else:
            raise CheckpointError(
                f'it is {found.kind} under the names of this project already, '
                'and is used as it is')
    write_checkpoint(args.out, imported, describe(args, meta))
    print('\n'.join([f'{args.checkpoint} is {found.kind}: {report}',
                     *found.lines]))
    print(f'Wrote {args.out}, {use}')
    return dict(checkpoint=args.checkpoint, kind=found.kind, out=args.out)


COMMANDS = [
    Command(
        name='export',
        help='write an encoder for timm, Hugging Face and others',
        description="Every key is checked against the config's model.",
        example='cmae export cmae_vit-b_300e epoch_300.pth vit.safetensors '
        '--to timm',
        add_arguments=add_export,
        check=check,
        run=export),
    Command(
        name='import',
        help='read a released CMAE checkpoint, or an MAE or ConvMAE encoder',
        description='Which of them it is, is found by the names in it. Every '
        "key is checked against the config's model.",
        example='cmae import cmae_vit-b_300e official.pth cmae.pth\n'
        'cmae import cmae_vit-b_300e mae_pretrain_vit_base.pth '
        'init.safetensors\n'
        'cmae import cmae_convvit-b_300e convmae_base.pth init.safetensors',
        add_arguments=add_import,
        check=check,
        run=import_),
]
