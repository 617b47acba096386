"""Replay a recorded trace of the hybrid encoder's published code.

The trace has one forward and backward pass of ConvMAE, which is a CMAE with
the hybrid encoder and without the contrastive branch. It runs ``CMAE.loss``.
"""
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from cmae_mm.checkpoints import CheckpointError, find_encoder, load_state
from cmae_mm.checkpoints.layouts import (DECODER, decoder_to_convmae, rename,
                                         to_convmae, with_zero_positions)

from .trace import Row, Trace, keep_output, relative_error

_NEEDED = ('img', 'mask', 'state_dict.pos_embed',
           'state_dict.patch_embed1.proj.weight',
           'state_dict.blocks1.0.attn.weight',
           'state_dict.blocks3.0.mlp.fc1.weight',
           'state_dict.decoder_embed.weight')


def is_of_convvit(meta: dict[str, Any]) -> bool:
    """Return whether a trace's metadata are those of the hybrid encoder."""
    return 'patch_sizes' in meta


def check_trace(trace: Trace, path: str) -> None:
    """Check that a trace is complete.

    Raises:
        CheckpointError: If metadata or tensors are missing.
    """
    missing = [k for k in _NEEDED if k not in trace.tensors]
    missing += [k for k in ('num_heads', 'decoder') if k not in trace.meta]
    if not missing and 'decoder_num_heads' not in trace.meta['decoder']:
        missing = ['decoder.decoder_num_heads']
    if missing:
        raise CheckpointError(f'{path} lacks {", ".join(missing)}')


def build_model(trace: Trace) -> nn.Module:
    """Build the trace's model and load its weights.

    All sizes come from the tensors, except for the numbers of heads.
    """
    weights = trace.under('state_dict.')

    def depth(name: str) -> int:
        found = (re.match(rf'{name}\.(\d+)\.', k) for k in weights)
        return 1 + max((int(m[1]) for m in found if m), default=-1)

    projections = [weights[f'patch_embed{i}.proj.weight'] for i in (1, 2, 3)]
    dims = [p.shape[0] for p in projections]
    decoder_dim = weights['decoder_embed.weight'].shape[0]
    visible = 1 - trace.tensors['mask'][0].float().mean().item()
    model = MODELS.build(
        dict(
            type='CMAE',
            backbone=dict(
                type='CMAEConvViT',
                arch=dict(
                    embed_dims=dims,
                    depths=[depth(f'blocks{i}') for i in (1, 2, 3)],
                    num_heads=trace.meta['num_heads']),
                img_size=trace.tensors['img'].shape[-1],
                patch_sizes=[p.shape[-1] for p in projections],
                in_channels=projections[0].shape[1],
                mlp_ratio=weights['blocks3.0.mlp.fc1.weight'].shape[0] /
                dims[-1],
                kernel_size=weights['blocks1.0.attn.weight'].shape[-1],
                # of the trace's own mask, which is used
                mask_ratio=1 - visible,
                mask_block=1),
            neck=dict(
                pixel_decoder=dict(
                    decoder_embed_dim=decoder_dim,
                    decoder_depth=depth('decoder_blocks'),
                    decoder_num_heads=trace.meta['decoder']
                    ['decoder_num_heads'],
                    mlp_ratio=_decoder_ratio(weights, decoder_dim))),
            head=dict(contrastive=None)))
    load_state(model.backbone, find_encoder(weights).state)
    decoder = rename(
        {k: v for k, v in weights.items()
         if k.startswith(('decoder_', 'mask_token'))}, DECODER, back=True)
    # It has no class token.
    decoder['decoder_pos_embed'] = with_zero_positions(
        decoder['decoder_pos_embed'])
    load_state(model.neck.pixel_decoder, decoder)
    return model.train()


def _decoder_ratio(weights: dict[str, Tensor], width: int) -> float:
    hidden = weights.get('decoder_blocks.0.mlp.fc1.weight')
    return 4 if hidden is None else hidden.shape[0] / width


def record(model: nn.Module, seen: dict[str, Tensor]) -> list[Callable]:
    """Store the model's intermediates in a dict.

    Returns:
        list[Callable]: Functions that remove the hooks.
    """
    encoder = model.backbone
    modules = dict(
        patch_embed1=encoder.conv_stages[0].patch_embed,
        stage1=encoder.conv_stages[0],
        stage2=encoder.conv_stages[1],
        stage3=encoder.layers[-1],
        latent=encoder,
        pred_pixel=model.neck.pixel_decoder)
    stops = [
        module.register_forward_hook(keep_output(seen, name)).remove
        for name, module in modules.items()
    ]
    stops.append(encoder.ln1.register_forward_pre_hook(
        lambda module, args: seen.update(fused=args[0])).remove)
    return stops


def cells_of(maps: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Select the visible patches' cells of a recorded map, (N, C, H, W)."""
    number, visible, side = like.shape[:3]
    grid = maps.shape[-1] // side
    x = maps.unflatten(2, (grid, side)).unflatten(4, (grid, side))
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)  # (N, L, s, s, C)
    return x[~mask].view(number, visible, side, side, -1)


def compare_stages(trace: Trace, encoder: nn.Module, seen: dict[str, Tensor],
                   mask: Tensor) -> Iterator[Row]:
    """Compare the stages' maps with and without a mask.

    Compared are the visible patches of a training step, and the maps on which
    masked patches are set to zero before a convolution.
    """
    images = trace.tensors['img']
    for name in ('patch_embed1', 'stage1', 'stage2'):
        if name in trace.tensors:
            recorded = cells_of(trace.tensors[name], mask, seen[name])
            yield Row(f'{name} (visible patches)',
                      relative_error(seen[name], recorded))
    with torch.no_grad():
        masked = encoder.conv_maps(images, mask)
        whole = encoder.conv_maps(images)
        first = seen['patch_embed1'].movedim(-1, 1)
        encoder(images)
    ours = {
        'patch_embed1': first,
        'stage1': masked[0],
        'stage2': masked[1],
        'whole.stage1': whole[0],
        'whole.stage2': whole[1],
        'whole.stage3': seen['stage3'],
        'whole.fused': seen['fused'],
    }
    for name, value in ours.items():
        if name in trace.tensors:
            yield Row(name, relative_error(value, trace.tensors[name]))


def replay(trace: Trace) -> Iterator[Row]:
    """Run the trace's step; compare all recorded values."""
    model = build_model(trace)
    mask = trace.tensors['mask'].bool()
    model.backbone.generate_mask = lambda n, device: mask
    seen: dict[str, Tensor] = {}
    orders: list[Tensor] = []
    stops = record(model, seen)
    stops.append(model.backbone.register_forward_hook(
        lambda module, args, output: orders.append(output[1])).remove)
    losses = model.loss([trace.tensors['img']])
    stops.pop()()
    for name in ('stage3', 'latent'):
        if name in trace.tensors:
            yield Row(name, relative_error(seen[name], trace.tensors[name]))
    if 'pred_pixel' in trace.tensors:
        yield from _compare_predictions(
            trace.tensors['pred_pixel'], model, seen, orders[0], mask)
    if 'ids_restore' in trace.tensors:
        yield Row('ids_restore', relative_error(
            orders[0], trace.tensors['ids_restore']))
    recorded = trace.tensors.get('loss', torch.tensor(trace.meta['loss'])
                                 if 'loss' in trace.meta else None)
    if recorded is not None:
        yield Row('loss', relative_error(
            losses['loss_rc'], recorded.squeeze()))
    yield from compare_stages(trace, model.backbone, seen, mask)

    model.parse_losses(losses)[0].backward()
    yield from _compare_gradients(trace, model)
    for stop in stops:
        stop()


def _compare_predictions(recorded: Tensor, model: nn.Module,
                         seen: dict[str, Tensor], ids_restore: Tensor,
                         mask: Tensor) -> Iterator[Row]:
    """Compare the predictions of masked patches and of all patches."""
    pred = seen['pred_pixel']
    yield Row('pred_pixel (masked patches)',
              relative_error(pred, recorded[mask].view_as(pred)))
    with torch.no_grad():
        every = model.neck.pixel_decoder(seen['latent'], ids_restore)
    yield Row('pred_pixel', relative_error(every, recorded))


def _compare_gradients(trace: Trace, model: nn.Module) -> Iterator[Row]:

    def gradients(module: nn.Module) -> dict[str, Tensor]:
        # NaN where there is no gradient
        return {
            n: torch.full_like(p, torch.nan) if p.grad is None else p.grad
            for n, p in module.named_parameters()
        }

    ours = to_convmae(gradients(model.backbone)) | decoder_to_convmae(
        gradients(model.neck.pixel_decoder))
    for name, recorded in trace.under('grad.').items():
        if name not in ours:
            raise CheckpointError(
                f'the trace has a gradient of {name}, but the model does not')
        yield Row(f'grad.{name}', relative_error(ours[name], recorded))
