"""Exporting encoders to other libraries, importing from them."""
import argparse
import os
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict

from ..config import ConfigError, load_config, remember
from ..files import check_output
from .arguments import (
    add_cfg_options,
    add_checkpoint,
    add_config,
    add_encoder,
    add_out,
)
from .command import Command, Result
from .parser import at_least

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
               'one: its model gives the sizes; a file')
    add_checkpoint(parser, "a checkpoint of the config's model")
    add_out(parser, '.safetensors or .pth file to write; for Hugging Face a '
            'folder; .onnx for ONNX')
    parser.add_argument(
        '--to', choices=(WHOLE, ONNX, *ENCODERS), required=True,
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
    if getattr(args, 'to', None) == WHOLE and (
            args.img_size is not None or args.encoder != 'online'):
        raise ConfigError('--to cmae exports the whole state, with both '
                          'encoders as they are: leave --encoder and '
                          '--img-size out')
    if getattr(args, 'to', None) == ONNX:
        from ..api.checks import check_onnx_file
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

    from ..checkpoints import (
        CheckpointError,
        export_classifier,
        export_cmae,
        export_encoder,
        load_state,
        read_checkpoint,
        write_checkpoint,
    )
    from ..checkpoints.encoder_facts import encoder_facts, read_encoder_facts
    model = build_model(args)
    is_classifier = isinstance(model, ImageClassifier) and args.to != WHOLE
    if not is_classifier:
        require_cmae(model, args)
    state, meta = read_checkpoint(args.checkpoint)
    noted = describe(args, meta)
    images = read_encoder_facts(meta).get('images')
    report = load_state(model, state, args.allow_partial)
    result: Result = dict(
        checkpoint=args.checkpoint, to=args.to, out=args.out)
    if args.to == ONNX:
        write: Callable[[str], None]
        if is_classifier:
            if args.encoder != 'online':
                raise CheckpointError(
                    f'{args.checkpoint}: a fine-tuned classifier has no '
                    'target encoder; leave --encoder out')
            write = partial(write_checkpoint, state=model.state_dict(),
                            meta=encoder_facts(model, images))
        else:
            write = partial(export_encoder, model, encoder=args.encoder,
                            img_size=args.img_size, images=images)
        result['difference'] = _export_onnx(args, write, noted)
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


def _export_onnx(args: argparse.Namespace, write: Callable[[str], None],
                 noted: Dict[str, Any]) -> float:
    """Write an ONNX file of what ``write`` writes.

    Heads and normalisation are those of the config's model, which the
    checkpoint itself need not say.
    """
    from ..api.encoder import load_encoder
    from ..api.onnx_file import export_onnx
    from ..checkpoints import CheckpointError
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'encoder.safetensors')
        write(file)
        try:
            encoder = load_encoder(file, img_size=args.img_size)
        except CheckpointError as error:
            raise CheckpointError(
                str(error).replace(file, args.checkpoint)) from None
        difference = export_onnx(encoder, args.out, **noted)
    print(f'features of ONNX Runtime and of torch differ by {difference:.1e} '
          'at most')
    return difference


def import_(args: argparse.Namespace) -> Result:
    """Find out what the checkpoint is, and write it under our names."""
    from ..checkpoints import (
        CheckpointError,
        find_encoder,
        import_cmae,
        import_convmae,
        import_mae,
        read_checkpoint,
        write_checkpoint,
    )
    from ..checkpoints.encoder import CONVMAE, FOREIGN_ENCODER, RELEASED
    model = build_model(args)
    require_cmae(model, args)
    state, meta = read_checkpoint(args.checkpoint)
    try:
        kind = find_encoder(state).kind
        if kind == RELEASED:
            report = import_cmae(model, state, args.allow_partial)
            imported = model.state_dict()
            use = 'the whole pre-training state, for load_from'
        elif kind in (FOREIGN_ENCODER, CONVMAE):
            load = import_mae if kind == FOREIGN_ENCODER else import_convmae
            report = load(model.backbone, state, args.allow_partial)
            imported = {
                f'backbone.{k}': v
                for k, v in model.backbone.state_dict().items()
            }
            use = 'an encoder, for init_cfg'
        else:
            raise CheckpointError(
                f'it is {kind} under the names of this project already, and '
                'is used as it is')
    except CheckpointError as error:
        raise CheckpointError(f'{args.checkpoint}: {error}') from None
    write_checkpoint(args.out, imported, describe(args, meta))
    print(f'{args.checkpoint} is {kind}: {report}')
    print(f'Wrote {args.out}, {use}')
    return dict(checkpoint=args.checkpoint, kind=kind, out=args.out)


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
