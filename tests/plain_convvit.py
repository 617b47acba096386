"""The hybrid encoder in plain PyTorch functions, over its published names.

Written from the formulas, on maps (N, C, H, W) where removed patches are set
to zero, and sharing nothing with the plugin: it makes traces of the form of
the recorded one, in any size.
"""
import json

import torch
import torch.nn.functional as F
from plain_reference import attention, norm, patchify, sincos, sub
from safetensors.torch import save_file


def conv(x, p, **kwargs):
    return F.conv2d(x, p['weight'], p['bias'], **kwargs)


def gelu(x):
    # F.gelu has wrong gradients on CPUs with torch 2.1.
    return x * (1 + torch.erf(x / 2**.5)) / 2


def channel_norm(x, p):
    mean = x.mean(1, keepdim=True)
    var = (x - mean).square().mean(1, keepdim=True)
    x = (x - mean) / (var + 1e-5).sqrt()
    return x * p['weight'].view(-1, 1, 1) + p['bias'].view(-1, 1, 1)


def count(p, name):
    return 1 + max((int(k.split('.')[1]) for k in p
                    if k.startswith(f'{name}.')), default=-1)


def conv_block(x, p, m):
    kernel = p['attn.weight'].shape[-1]
    y = conv(channel_norm(x, sub(p, 'norm1.')), sub(p, 'conv1.')) * m
    y = conv(y, sub(p, 'attn.'), padding=kernel // 2, groups=y.shape[1])
    x = x + conv(y, sub(p, 'conv2.'))
    y = conv(channel_norm(x, sub(p, 'norm2.')), sub(p, 'mlp.fc1.'))
    return x + conv(gelu(y), sub(p, 'mlp.fc2.'))


def transformer_block(x, p, heads):
    x = x + attention(norm(x, sub(p, 'norm1.')), sub(p, 'attn.'), heads)
    y = F.linear(norm(x, sub(p, 'norm2.')), p['mlp.fc1.weight'],
                 p['mlp.fc1.bias'])
    return x + F.linear(gelu(y), p['mlp.fc2.weight'], p['mlp.fc2.bias'])


def patch_embed(x, p):
    x = conv(x, sub(p, 'proj.'), stride=p['proj.weight'].shape[-1])
    return gelu(channel_norm(x, sub(p, 'norm.')))


def encode(p, images, mask, heads):
    """Give each intermediate; `fused` before the norm, `latent` after it."""
    seen, outputs = {}, []
    number, x = len(images), images
    height, width = images.shape[2:]
    side = round((height * width / mask.shape[1])**.5)  # of a patch
    m = (~mask).view(
        number, 1, height // side, width // side).to(images.dtype)
    for i in (1, 2):
        x = patch_embed(x, sub(p, f'patch_embed{i}.'))
        seen[f'patch_embed{i}'] = x
        enlarged = F.interpolate(m, size=x.shape[2:])
        for j in range(count(p, f'blocks{i}')):
            x = conv_block(x, sub(p, f'blocks{i}.{j}.'), enlarged)
        seen[f'stage{i}'] = x
        fuse = sub(p, f'stage{i}_output_decode.')
        if fuse:
            y = conv(x, fuse, stride=fuse['weight'].shape[-1])
            outputs.append(y.flatten(2).transpose(1, 2))
    x = patch_embed(x, sub(p, 'patch_embed3.')).flatten(2).transpose(1, 2)
    x = F.linear(x, p['patch_embed4.weight'], p['patch_embed4.bias'])
    x = (x + p['pos_embed'])[~mask].view(number, -1, x.shape[-1])
    for j in range(count(p, 'blocks3')):
        x = transformer_block(x, sub(p, f'blocks3.{j}.'), heads)
    seen['stage3'] = x
    for y in outputs:
        x = x + y[~mask].view_as(x)
    seen['fused'] = x
    if 'norm.weight' in p:
        seen['latent'] = norm(x, sub(p, 'norm.'))
    return seen


def decode(p, latent, mask, heads):
    x = F.linear(latent, p['decoder_embed.weight'], p['decoder_embed.bias'])
    full = p['mask_token'].expand(*mask.shape, -1).clone()
    full[~mask] = x.flatten(0, 1)
    x = full + p['decoder_pos_embed']
    for j in range(count(p, 'decoder_blocks')):
        x = transformer_block(x, sub(p, f'decoder_blocks.{j}.'), heads)
    x = norm(x, sub(p, 'decoder_norm.'))
    return F.linear(x, p['decoder_pred.weight'], p['decoder_pred.bias'])


def reconstruction_loss(pred, images, mask):
    x = patchify(images, images.shape[-1] // round(mask.shape[1]**.5))
    x = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True) + 1e-6).sqrt()
    return (pred - x).square().mean(-1)[mask].mean()


def _shapes(img_size, patch_sizes, dims, depths, ratio, kernel, decoder):
    shapes, width = {}, 3
    stride = patch_sizes[0] * patch_sizes[1] * patch_sizes[2]
    length = (img_size // stride)**2

    def linear(name, out, into, *more):
        shapes[f'{name}.weight'] = (out, into, *more)
        shapes[f'{name}.bias'] = (out, )

    def layer_norm(name, dim):
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (dim, )

    def transformer(name, dim, ratio):
        layer_norm(f'{name}.norm1', dim)
        linear(f'{name}.attn.qkv', 3 * dim, dim)
        linear(f'{name}.attn.proj', dim, dim)
        layer_norm(f'{name}.norm2', dim)
        linear(f'{name}.mlp.fc1', int(ratio * dim), dim)
        linear(f'{name}.mlp.fc2', dim, int(ratio * dim))

    for i, (dim, side) in enumerate(zip(dims, patch_sizes), 1):
        linear(f'patch_embed{i}.proj', dim, width, side, side)
        layer_norm(f'patch_embed{i}.norm', dim)
        width = dim
        for j in range(depths[i - 1]):
            name = f'blocks{i}.{j}'
            if i == 3:
                transformer(name, dim, ratio)
                continue
            layer_norm(f'{name}.norm1', dim)
            linear(f'{name}.conv1', dim, dim, 1, 1)
            linear(f'{name}.attn', dim, 1, kernel, kernel)
            linear(f'{name}.conv2', dim, dim, 1, 1)
            layer_norm(f'{name}.norm2', dim)
            linear(f'{name}.mlp.fc1', int(ratio * dim), dim, 1, 1)
            linear(f'{name}.mlp.fc2', dim, int(ratio * dim), 1, 1)
    linear('patch_embed4', width, width)
    sides = (patch_sizes[1] * patch_sizes[2], patch_sizes[2])
    for i, side in enumerate(sides, 1):
        linear(f'stage{i}_output_decode', width, dims[i - 1], side, side)
    layer_norm('norm', width)
    linear('decoder_embed', decoder['dim'], width)
    for j in range(decoder['depth']):
        transformer(f'decoder_blocks.{j}', decoder['dim'], decoder['ratio'])
    layer_norm('decoder_norm', decoder['dim'])
    linear('decoder_pred', stride**2 * 3, decoder['dim'])
    shapes['mask_token'] = (1, 1, decoder['dim'])
    return shapes, length


def make_trace(path, img_size=32, patch_sizes=(4, 2, 2), dims=(8, 12, 16),
               depths=(1, 1, 1), heads=2, ratio=4, kernel=5, keep=2,
               decoder=None, change=None):
    """Write a trace; `change` may alter its tensors before."""
    decoder = dict(dim=12, depth=1, heads=3, ratio=4) | (decoder or {})
    shapes, length = _shapes(img_size, patch_sizes, dims, depths, ratio,
                             kernel, decoder)
    torch.manual_seed(5)
    p = {}
    for name, shape in shapes.items():
        p[name] = 0.2 * torch.randn(shape)
        if 'norm' in name and name.endswith('weight'):
            p[name] += 1
        p[name].requires_grad_()
    side = round(length**.5)
    for name, dim in (('pos_embed', dims[-1]),
                      ('decoder_pos_embed', decoder['dim'])):
        p[name] = sincos(side, dim)[:, 1:]
    images = torch.randn(3, 3, img_size, img_size)
    mask = torch.rand(3, length).argsort(1) >= keep
    seen = encode(p, images, mask, heads)
    whole = encode(p, images, torch.zeros_like(mask), heads)
    pred = decode(p, seen['latent'], mask, decoder['heads'])
    loss = reconstruction_loss(pred, images, mask)
    loss.backward()
    order = mask.int().argsort(dim=1, stable=True).argsort(1)
    names = ('patch_embed1', 'stage1', 'stage2', 'stage3', 'latent')
    tensors = dict(
        img=images, mask=mask.float(), ids_restore=order, pred_pixel=pred,
        loss=loss.view(1), **{k: seen[k] for k in names},
        **{f'whole.{k}': whole[k]
           for k in ('stage1', 'stage2', 'stage3', 'fused')},
        **{f'state_dict.{k}': v for k, v in p.items()},
        **{f'grad.{k}': p[k].grad for k in shapes})
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    if change is not None:
        change(tensors)
    meta = dict(
        img_size=img_size, patch_sizes=patch_sizes, embed_dims=dims,
        depths=depths, num_heads=heads, mlp_ratio=ratio, conv_kernel=kernel,
        mask_ratio=1 - keep / length, mask_block=1,
        decoder=dict(
            decoder_embed_dim=decoder['dim'], decoder_depth=decoder['depth'],
            decoder_num_heads=decoder['heads']),
        loss=loss.item())
    save_file(tensors, path, dict(meta=json.dumps(meta)))
