"""The method in plain PyTorch functions, over the released code's names.

Written from the formulas, and sharing nothing with the plugin: it makes
traces of the form of the recorded one, in any size.
"""
import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


def sincos(grid, width):
    """2-D sine-cosine positions with a zero for the class token."""
    omega = 1 / 10000**(torch.arange(width // 4, dtype=torch.double) /
                        (width // 4))
    rows = []
    for y in range(grid):
        for x in range(grid):
            # mmpretrain's order: the column index comes from the outer loop
            rows.append(
                torch.cat([
                    torch.sin(y * omega),
                    torch.cos(y * omega),
                    torch.sin(x * omega),
                    torch.cos(x * omega)
                ]))
    table = torch.stack([torch.zeros(width, dtype=torch.double), *rows])
    return table[None].float()


def attention(x, p, heads):
    n, t, d = x.shape
    q, k, v = F.linear(x, p['qkv.weight'], p['qkv.bias']).view(
        n, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(d // heads)).softmax(-1)
    x = (weights @ v).transpose(1, 2).reshape(n, t, d)
    return F.linear(x, p['proj.weight'], p['proj.bias'])


def sub(p, prefix):
    return {k[len(prefix):]: v for k, v in p.items() if k.startswith(prefix)}


def norm(x, p):
    return F.layer_norm(x, x.shape[-1:], p['weight'], p['bias'], 1e-6)


def blocks(x, p, name, heads):
    depth = 1 + max(
        (int(k.split('.')[1]) for k in p if k.startswith(name)), default=-1)
    for i in range(depth):
        layer = sub(p, f'{name}.{i}.')
        x = x + attention(norm(x, sub(layer, 'ln1.')), sub(layer, 'attn.'),
                          heads)
        h = norm(x, sub(layer, 'ln2.'))
        h = F.gelu(
            F.linear(h, layer['ffn.layers.0.0.weight'],
                     layer['ffn.layers.0.0.bias']))
        x = x + F.linear(h, layer['ffn.layers.1.weight'],
                         layer['ffn.layers.1.bias'])
    return x


def encode(img, p, meta, ids_keep=None, final_norm=True, cls=True):
    x = F.conv2d(
        img,
        p['patch_embed.projection.weight'],
        p['patch_embed.projection.bias'],
        stride=meta['patch_size']).flatten(2).transpose(1, 2)
    x = x + p['pos_embed'][:, 1:]
    if ids_keep is not None:
        x = torch.stack([x[i, ids_keep[i]] for i in range(len(x))])
    if cls:
        token = (p['cls_token'] + p['pos_embed'][:, :1]).expand(len(x), -1, -1)
        x = torch.cat([token, x], 1)
    x = blocks(x, p, 'layers', meta['arch']['num_heads'])
    return norm(x, sub(p, 'ln1.')) if final_norm else x


def decode(latent, ids_restore, p, heads):
    x = F.linear(latent, p['decoder_embed.weight'], p['decoder_embed.bias'])
    n, num_patches = ids_restore.shape
    hidden = p['mask_token'].expand(n, num_patches + 1 - x.shape[1], -1)
    whole = torch.cat([x[:, 1:], hidden], 1)
    whole = torch.stack([whole[i, ids_restore[i]] for i in range(n)])
    x = torch.cat([x[:, :1], whole], 1) + p['decoder_pos_embed']
    x = norm(blocks(x, p, 'decoder_blocks', heads), sub(p, 'ln1.'))
    return F.linear(x, p['decoder_pred.weight'], p['decoder_pred.bias'])[:, 1:]


def mlp(x, p, buffers):
    x = F.linear(x, p['fc0.weight'], p['fc0.bias'])
    buffers['bn0.num_batches_tracked'] += 1
    x = F.batch_norm(x, buffers['bn0.running_mean'],
                     buffers['bn0.running_var'], p['bn0.weight'],
                     p['bn0.bias'], True, 0.1, 1e-6)
    return F.linear(F.relu(x), p['fc1.weight'])


def patchify(img, p):
    n, c, h, w = img.shape
    x = img.view(n, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)


def init_weights(meta):
    """Random weights of every part, under the released code's names."""
    arch, dec = meta['arch'], meta['decoder']
    width, patch = arch['embed_dims'], meta['patch_size']
    grid = meta['img_size'] // patch
    hid, out = meta['projector']['hid'], meta['projector']['out']
    p = {}

    def add(name, *shape):
        scale = 0.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        p[name] = torch.randn(*shape) * scale + name.endswith(
            ('ln1.weight', 'ln2.weight', 'bn0.weight'))

    def add_linear(name, n_in, n_out, bias=True):
        add(f'{name}.weight', n_out, n_in)
        if bias:
            add(f'{name}.bias', n_out)

    def add_norm(name, n):
        add(f'{name}.weight', n)
        add(f'{name}.bias', n)

    def add_blocks(name, depth, n, hidden):
        for i in range(depth):
            layer = f'{name}.{i}'
            add_norm(f'{layer}.ln1', n)
            add_linear(f'{layer}.attn.qkv', n, 3 * n)
            add_linear(f'{layer}.attn.proj', n, n)
            add_norm(f'{layer}.ln2', n)
            add_linear(f'{layer}.ffn.layers.0.0', n, hidden)
            add_linear(f'{layer}.ffn.layers.1', hidden, n)

    def add_mlp(name, n_in):
        add_linear(f'{name}.fc0', n_in, hid)
        add_norm(f'{name}.bn0', hid)
        p[f'{name}.bn0.running_mean'] = torch.zeros(hid)
        p[f'{name}.bn0.running_var'] = torch.ones(hid)
        p[f'{name}.bn0.num_batches_tracked'] = torch.tensor(0)
        add_linear(f'{name}.fc1', hid, out, bias=False)

    add('backbone.cls_token', 1, 1, width)
    p['backbone.pos_embed'] = sincos(grid, width)
    add('backbone.patch_embed.projection.weight', width, 3, patch, patch)
    add('backbone.patch_embed.projection.bias', width)
    add_blocks('backbone.layers', arch['num_layers'], width,
               arch['feedforward_channels'])
    add_norm('backbone.ln1', width)
    for name, depth, pred in (('pixel_decoder', dec['pixel_depth'],
                               3 * patch**2),
                              ('feature_decoder', dec['feature_depth'],
                               width)):
        add_linear(f'{name}.decoder_embed', width, dec['dim'])
        add(f'{name}.mask_token', 1, 1, dec['dim'])
        p[f'{name}.decoder_pos_embed'] = sincos(grid, dec['dim'])
        add_blocks(f'{name}.decoder_blocks', depth, dec['dim'],
                   int(dec['mlp_ratio'] * dec['dim']))
        add_norm(f'{name}.ln1', dec['dim'])
        add_linear(f'{name}.decoder_pred', dec['dim'], pred)
    add_mlp('projector', width)
    add_mlp('head.predictor', out)
    for name in [n for n in p if n.startswith(('backbone', 'projector'))]:
        if '.ln1.' not in name or 'layers' in name:
            p[f'target_{name}'] = p[name].clone()
    return p


def make_trace(path, batch=8, **changes):
    """Write a trace of a small model; changes are top keys of the metadata."""
    meta = dict(
        img_size=16,
        patch_size=4,
        arch=dict(
            embed_dims=48,
            num_layers=2,
            num_heads=3,
            feedforward_channels=96),
        mask_ratio=0.5,
        block=2,
        decoder=dict(
            dim=32, pixel_depth=1, feature_depth=1, heads=4, mlp_ratio=2.),
        projector=dict(hid=24, out=16),
        temperature=0.07,
        ct_weight=1.,
        momentum=0.996,
        target_cls=True,
        sgd_lr=0.05,
        steps=3)
    meta.update(changes)
    meta['loss'] = []
    state = init_weights(meta)
    tensors = {f'state_dict.{k}': v.clone() for k, v in state.items()}
    fixed = ('pos_embed', 'running_', 'num_batches')
    online = [
        k for k in state
        if not k.startswith('target_') and not any(f in k for f in fixed)
    ]
    patch, cls = meta['patch_size'], meta['target_cls']
    side = meta['img_size'] // patch // meta['block']
    keep = int(side * side * (1 - meta['mask_ratio']))
    for step in range(meta['steps']):
        img, img_t = torch.randn(2, batch, 3, meta['img_size'],
                                 meta['img_size'])
        units = torch.ones(batch, side, side)
        for n in range(batch):
            units[n].view(-1)[torch.randperm(side * side)[:keep]] = 0
        mask = units.repeat_interleave(meta['block'], 1).repeat_interleave(
            meta['block'], 2).flatten(1)
        # any order of the visible tokens: here a random one
        ids_shuffle = (mask + torch.rand_like(mask) / 2).argsort(1)
        ids_restore = ids_shuffle.argsort(1)
        ids_keep = ids_shuffle[:, :int((1 - mask[0]).sum())]

        for name in online:
            state[name].requires_grad_()
        latent = encode(img, sub(state, 'backbone.'), meta, ids_keep)
        heads = meta['decoder']['heads']
        pixel = decode(latent, ids_restore, sub(state, 'pixel_decoder.'),
                       heads)
        feature = decode(latent, ids_restore, sub(state, 'feature_decoder.'),
                         heads)
        proj_s = mlp(
            feature.mean(1), sub(state, 'projector.'),
            sub(state, 'projector.'))
        pred_s = mlp(proj_s, sub(state, 'head.predictor.'),
                     sub(state, 'head.predictor.'))
        with torch.no_grad():
            latent_t = encode(
                img_t,
                sub(state, 'target_backbone.'),
                meta,
                final_norm=False,
                cls=cls)
            proj_t = mlp(latent_t[:, int(cls):].mean(1),
                         sub(state, 'target_projector.'),
                         sub(state, 'target_projector.'))
        pixels = patchify(img, patch)
        pixels = (pixels - pixels.mean(-1, True)) / (
            pixels.var(-1, keepdim=True) + 1e-6).sqrt()
        loss_rc = (((pixel - pixels)**2).mean(-1) * mask).sum() / mask.sum()
        rho = F.normalize(pred_s) @ F.normalize(proj_t).t()
        tau = meta['temperature']
        loss_ct = meta['ct_weight'] * 2 * tau * (
            (rho / tau).logsumexp(1) - rho.diag() / tau).mean()
        meta['loss'].append(
            dict(loss_ct=loss_ct.item(), loss_rc=loss_rc.item()))
        grads = torch.autograd.grad(loss_ct + loss_rc,
                                    [state[k] for k in online])
        tensors.update({
            f'step{step}.img': img,
            f'step{step}.img_t': img_t,
            f'step{step}.mask': mask,
            f'step{step}.ids_restore': ids_restore
        })
        if step == 0:
            made = dict(
                latent_s=latent,
                latent_t=latent_t,
                pred_pixel=pixel,
                pred_feature=feature,
                proj_s=proj_s[:, None],
                proj_t=proj_t[:, None],
                pred_s=pred_s[:, None])
            tensors.update(
                {f'step0.{k}': v.detach().clone()
                 for k, v in made.items()})
            # Matrices alone, as in the recorded trace: shifts before a
            # BatchNorm have no gradient but rounding noise.
            tensors.update({
                f'step0.grad.{k}': g.clone()
                for k, g in zip(online, grads) if g.dim() > 1
            })
        for name, grad in zip(online, grads):
            state[name] = state[name].detach() - meta['sgd_lr'] * grad
        for name in online:
            if f'target_{name}' in state:
                target = state[f'target_{name}']
                state[f'target_{name}'] = (
                    meta['momentum'] * target +
                    (1 - meta['momentum']) * state[name])
    tensors.update({f'final.{k}': v.detach().clone()
                    for k, v in state.items()})
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, path, dict(meta=json.dumps(meta)))
    return meta, tensors
