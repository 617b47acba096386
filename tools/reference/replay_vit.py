"""Replay a recorded trace of CMAE's released code.

Each step of the trace runs ``CMAE.loss``, the optimizer wrapper and
``TargetUpdateHook``, as in training.
"""
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from cmae_mm.checkpoints import CheckpointError, load_model
from cmae_mm.checkpoints.layouts import from_cmae
from cmae_mm.engine import TargetUpdateHook

from .trace import Row, Trace, keep_output, keep_predictions, relative_error


def check_trace(trace: Trace, path: str) -> None:
    """Check that a trace is complete.

    Raises:
        CheckpointError: If metadata or tensors are missing.
    """
    meta, tensors = trace
    needed = ('img_size', 'patch_size', 'arch', 'decoder', 'mask_ratio',
              'block', 'temperature', 'ct_weight', 'momentum', 'target_cls',
              'sgd_lr', 'steps', 'loss')
    missing = [k for k in needed if k not in meta]
    missing += [
        f'step{n}.{k}' for n in range(meta.get('steps', 0))
        for k in ('img', 'img_t', 'mask') if f'step{n}.{k}' not in tensors
    ]
    if missing:
        raise CheckpointError(f'{path} lacks {", ".join(missing)}')


def build_model(trace: Trace) -> nn.Module:
    """Build the trace's model with its initial weights."""
    meta, decoder = trace.meta, trace.meta['decoder']
    weights = trace.under('state_dict.')

    def decoder_cfg(depth: int) -> dict[str, Any]:
        return dict(
            decoder_embed_dim=decoder['dim'],
            decoder_depth=depth,
            decoder_num_heads=decoder['heads'],
            mlp_ratio=decoder['mlp_ratio'])

    def hidden(name: str) -> int:
        return weights[f'{name}.fc0.weight'].shape[0]

    model = MODELS.build(
        dict(
            type='CMAE',
            backbone=dict(
                type='CMAEViT',
                arch=meta['arch'],
                img_size=meta['img_size'],
                patch_size=meta['patch_size'],
                mask_ratio=meta['mask_ratio'],
                mask_block=meta['block']),
            neck=dict(
                pixel_decoder=decoder_cfg(decoder['pixel_depth']),
                feature_decoder=decoder_cfg(decoder['feature_depth']),
                projector=dict(
                    hid_channels=hidden('projector'),
                    out_channels=weights['projector.fc1.weight'].shape[0])),
            head=dict(
                contrastive=dict(
                    predictor=dict(hid_channels=hidden('head.predictor')),
                    temperature=meta['temperature'],
                    loss_weight=meta['ct_weight'],
                    scale_by_temperature=True)),
            target=dict(
                momentum=meta['momentum'],
                with_cls_token=meta['target_cls'])))
    load_model(model, weights)
    return model.train()


def record(model: nn.Module, seen: dict[str, Tensor]) -> list[Callable]:
    """Store the model's intermediates in a dict.

    Returns:
        list[Callable]: Functions that remove the hooks.
    """
    modules = dict(
        latent_s=model.backbone,
        proj_s=model.neck.projector,
        proj_t=model.target.projector,
        pred_s=model.head.contrastive.predictor)
    stops = [
        module.register_forward_hook(keep_output(seen, name)).remove
        for name, module in modules.items()
    ]
    decoders = dict(
        pred_pixel=model.neck.pixel_decoder,
        pred_feature=model.neck.feature_decoder)
    stops += [
        decoder.register_forward_hook(keep_predictions(seen, name)).remove
        for name, decoder in decoders.items()
    ]
    # No norm follows the target's last layer.
    last = model.target.encoder.layers[-1]
    stops.append(last.register_forward_hook(
        keep_output(seen, 'latent_t')).remove)
    return stops


def reference_order(latent: Tensor, mask: Tensor,
                    ids_restore: Tensor) -> Tensor:
    """Reorder our row-major visible tokens as the reference does."""
    num_visible = latent.shape[1] - 1
    patches = (~mask).nonzero()[:, 1].view(-1, num_visible)
    place = ids_restore.gather(1, patches)  # of our i-th token in theirs
    ordered = torch.empty_like(latent[:, 1:])
    ordered.scatter_(1, place[..., None].expand_as(ordered), latent[:, 1:])
    return torch.cat([latent[:, :1], ordered], dim=1)


def compare_intermediates(trace: Trace, number: int, seen: dict[str, Tensor],
                          mask: Tensor) -> Iterator[Row]:
    """Compare the intermediates of a step."""
    for name, ours in seen.items():
        recorded = trace.tensors.get(f'step{number}.{name}')
        if recorded is None:
            continue
        ours = ours.detach()
        if name == 'latent_s':
            ours = reference_order(ours, mask,
                                   trace.step(number, 'ids_restore'))
        elif name in ('proj_s', 'proj_t', 'pred_s'):
            ours = ours.view_as(recorded)
        yield Row(f'step{number}.{name}', relative_error(ours, recorded))


def find_ours(ours: dict[str, Tensor], theirs: dict[str, Tensor],
              what: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Pair recorded tensors with ours by name."""
    for name, recorded in theirs.items():
        renamed = next(iter(from_cmae({name: recorded})))
        if renamed not in ours:
            raise CheckpointError(
                f'the trace has {what} of {name}, but the model does not')
        yield name, ours[renamed], recorded


def replay(trace: Trace) -> Iterator[Row]:
    """Run every step of the trace; compare all recorded values."""
    meta = trace.meta
    model = build_model(trace)
    optim_wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad],
                        lr=meta['sgd_lr']))
    hook = TargetUpdateHook()
    hook.attach(model, optim_wrapper.optimizer, num_steps=meta['steps'])
    # Before the step: update_params clears gradients after it.
    grads: dict[str, Tensor] = {}
    optim_wrapper.optimizer.register_step_pre_hook(
        lambda *args: grads.update((n, p.grad.clone()) for n, p in model.
                                   named_parameters() if p.grad is not None))
    seen: dict[str, Tensor] = {}
    record(model, seen)

    for number in range(meta['steps']):
        mask = trace.step(number, 'mask').bool()
        model.backbone.generate_mask = lambda n, device, mask=mask: mask
        losses = model.loss(
            [trace.step(number, 'img'),
             trace.step(number, 'img_t')])
        yield from compare_intermediates(trace, number, seen, mask)
        for name, value in meta['loss'][number].items():
            yield Row(f'step{number}.{name}',
                      relative_error(losses[name], torch.tensor(value)))
        optim_wrapper.update_params(model.parse_losses(losses)[0])
        for name, ours, recorded in find_ours(
                grads, trace.under(f'step{number}.grad.'), 'a gradient'):
            yield Row(f'step{number}.grad.{name}',
                      relative_error(ours, recorded))

    for name, ours, recorded in find_ours(
            model.state_dict(), trace.under('final.'), 'a final value'):
        if (name == 'target_backbone.pos_embed'
                and recorded.shape[1] == ours.shape[1] - 1):
            ours = ours[:, 1:]  # a target without a class token
        yield Row(f'final.{name}', relative_error(ours, recorded))
