#!/usr/bin/env python
"""Convert checkpoints: import CMAE and MAE ones, export encoders.

    convert.py import-cmae SRC OUT --config CONFIG
    convert.py import-mae  SRC OUT --config CONFIG
    convert.py export      SRC OUT --config CONFIG --to timm
    convert.py export-cmae SRC OUT --config CONFIG

CONFIG is the pre-training config; its model gives the sizes, and every key is
checked against it. `export --to timm` takes a fine-tuning config as well.
"""
# isort: off
import first_import  # noqa: F401
# isort: on
import argparse
import os
from typing import Any, Dict

import torch
from mmengine.registry import init_default_scope
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from cmae_mm.checkpoints import (
    EXPORTS,
    CheckpointError,
    export_classifier,
    export_cmae,
    export_encoder,
    import_cmae,
    import_mae,
    load_state,
    read_checkpoint,
    write_checkpoint,
)
from cmae_mm.cli.command import run
from cmae_mm.cli.config import add_config_options, load_config
from cmae_mm.cli.errors import remember


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    helps = {
        'import-cmae': 'a released CMAE checkpoint into a CMAE to load_from',
        'import-mae': 'an MAE encoder (FAIR or timm) into an init_cfg',
        'export': 'an encoder for another library',
        'export-cmae': "the whole state under the released code's names",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('source', help='checkpoint to read')
        command.add_argument(
            'out', help='.safetensors or .pth to write; for Hugging Face a '
            'folder')
        command.add_argument(
            '--config', required=True,
            help='pre-training config; for `export` also a fine-tuning one')
        add_config_options(command)
        command.add_argument(
            '--allow-partial', action='store_true',
            help='go on although keys are missing, unexpected or misshapen')
        if name == 'export':
            command.add_argument(
                '--to', choices=sorted(EXPORTS), required=True)
            command.add_argument(
                '--encoder', choices=['online', 'target'], default='online')
            command.add_argument(
                '--img-size', type=int,
                help='resample positions to images of this side, in pixels')
    return parser.parse_args()


def build_model(args: argparse.Namespace) -> torch.nn.Module:
    """Build the config's model."""
    cfg = load_config(args.config, args.cfg_options)
    remember(cfg, args.cfg_options)
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model)


def describe(args: argparse.Namespace, meta: Dict[str, Any]) -> Dict[str, Any]:
    """Say where a converted checkpoint comes from."""
    noted = {k: meta[k] for k in ('epoch', 'iter') if k in meta}
    return dict(recipe=args.config, converted_from=args.source, **noted)


def convert() -> None:
    """Run one command."""
    args = parse_args()
    if os.path.realpath(args.source) == os.path.realpath(args.out):
        raise CheckpointError(
            f'{args.out} is the checkpoint that is read, and would be '
            'overwritten; write to another file')
    if getattr(args, 'img_size', None) is not None and args.img_size < 1:
        raise CheckpointError(
            f'--img-size must be 1 pixel or more, but got {args.img_size}')
    model = build_model(args)
    state, meta = read_checkpoint(args.source)
    noted = describe(args, meta)
    if args.command == 'import-cmae':
        report = import_cmae(model, state, args.allow_partial)
        write_checkpoint(args.out, model.state_dict(), noted)
    elif args.command == 'import-mae':
        report = import_mae(model.backbone, state, args.allow_partial)
        write_checkpoint(
            args.out, {
                f'backbone.{k}': v
                for k, v in model.backbone.state_dict().items()
            }, noted)
    else:
        report = load_state(model, state, args.allow_partial)
        if args.command == 'export' and isinstance(model, ImageClassifier):
            export_classifier(model, args.out, args.to, **noted)
        elif args.command == 'export-cmae':
            export_cmae(model, args.out, **noted)
        else:
            export_encoder(model, args.out, args.to, args.encoder,
                           args.img_size, **noted)
    print(f'{args.source}: {report}')
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    run(convert)
