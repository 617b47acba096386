"""Contrastive Masked Autoencoders (arXiv 2207.13532), one page of PyTorch.

    python examples/cmae_plain.py FOLDER_OF_IMAGES --epochs 10

For reading and teaching: the method and its losses for one process, with sizes
for a CPU; optimizer and initial weights are simpler. A test compares its
numbers with the plugin's. Shapes: N images, L patches of P x P pixels, V
visible patches, width D of the encoder, width E of the projections.
"""
import argparse
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms as T

SIZE, SHIFT = 64, 8  # pixels
crop = T.Compose([T.RandomResizedCrop(SIZE + SHIFT, (0.2, 1.)),
                  T.RandomHorizontalFlip(), T.ToTensor()])
colour = T.Compose([T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
                    T.RandomGrayscale(0.2),
                    T.RandomApply([T.GaussianBlur(7, (0.1, 1.))], 0.5)])
normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def two_views(path):
    """Cut both views from one crop with a pixel shift."""
    with Image.open(path) as image:
        canvas = crop(image.convert('RGB'))  # (3, SIZE + SHIFT, SIZE + SHIFT)
    r_y, r_x = torch.randint(SHIFT, (2, )).tolist()
    x_s = canvas[:, :SIZE, :SIZE]
    x_t = colour(canvas[:, r_y:r_y + SIZE, r_x:r_x + SIZE])
    return normalise(x_s), normalise(x_t)


def sincos_positions(grid, width):
    """Sine-cosine positions, zeros for the class token: (1, 1 + L, D)."""
    omega = 10000.**-(torch.arange(width // 4).double() / (width // 4))
    angle = torch.arange(grid).double().outer(omega)
    wave = torch.cat([angle.sin(), angle.cos()], 1)  # (grid, D / 2)
    table = [wave.repeat_interleave(grid, 0), wave.repeat(grid, 1)]  # y, x
    return F.pad(torch.cat(table, 1), (0, 0, 1, 0))[None].float()


def mlp(width_in, hidden, width_out):
    """MLP of projector and predictor."""
    return nn.Sequential(
        nn.Linear(width_in, hidden), nn.BatchNorm1d(hidden, eps=1e-6),
        nn.ReLU(), nn.Linear(hidden, width_out, bias=False))


class Transformer(nn.Module):
    """Transformer blocks, final norm and fixed position embeddings."""

    def __init__(self, grid, width, depth, heads):
        super().__init__()
        self.register_buffer('positions', sincos_positions(grid, width))
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0., activation='gelu',
            layer_norm_eps=1e-6, batch_first=True, norm_first=True)
            for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)


class Encoder(Transformer):
    """F: vision transformer over the class token and visible patches."""

    def __init__(self, grid, patch, width, depth, heads):
        super().__init__(grid, width, depth, heads)
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def forward(self, x, ids_keep=None):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        if ids_keep is not None:
            x = x.take_along_dim(ids_keep[..., None], 1)  # (N, L or V, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        return self.norm(self.layers(x))  # (N, 1 + V, D)


class Decoder(Transformer):
    """G: transformer over visible patches and mask tokens."""

    def __init__(self, grid, width_in, width, depth, heads, width_out):
        super().__init__(grid, width, depth, heads)
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.predict = nn.Linear(width, width_out)

    def forward(self, z_v, ids_restore):
        x = self.embed(z_v)
        masked = ids_restore.shape[1] + 1 - x.shape[1]
        x_m = self.mask_token.expand(len(x), masked, -1)
        patches = torch.cat([x[:, 1:], x_m], 1)  # visible, masked
        patches = patches.take_along_dim(ids_restore[..., None], 1)
        x = torch.cat([x[:, :1], patches], 1) + self.positions
        return self.predict(self.norm(self.layers(x)))[:, 1:]  # (N, L, out)


class CMAE(nn.Module):
    """Online branch, target branch and losses."""

    mask_ratio, block = 0.65, 2  # in blocks of 2 x 2 patches
    tau, lambda_c, mu = 0.07, 1., 0.996

    def __init__(self, size=64, patch=8, width=128, depth=4, heads=4,
                 decoder=64, decoder_depth=1, hidden=512, projection=128):
        super().__init__()
        self.grid, self.patch = size // patch, patch
        self.encoder = Encoder(self.grid, patch, width, depth, heads)  # F_s
        sizes = (self.grid, width, decoder, decoder_depth, heads)
        self.pixel_decoder = Decoder(*sizes, 3 * patch**2)  # G_p
        self.feature_decoder = Decoder(*sizes, width)  # G_f
        self.projector = mlp(width, hidden, projection)
        self.predictor = mlp(projection, hidden, projection)
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.target_encoder.norm = nn.Identity()  # F_t has no final norm
        self.target_projector = deepcopy(self.projector).requires_grad_(False)

    def draw_mask(self, n):
        """Mask blocks of patches: bool (N, L), True = masked."""
        side, b = self.grid // self.block, self.block
        order = torch.rand(n, side**2).argsort(1).argsort(1)
        mask = order.view(n, side, -1) >= int(side**2 * (1 - self.mask_ratio))
        return mask.repeat_interleave(b, 1).repeat_interleave(b, 2).flatten(1)

    def forward(self, x_s, x_t, mask):
        """Compute L_r and lambda_c L_c of two views, (N, 3, H, W) each."""
        # The order "visible, then masked patches", and its inverse.
        ids_shuffle = mask.int().argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(1)
        ids_keep = ids_shuffle[:, :int((~mask[0]).sum())]

        z_v = self.encoder(x_s, ids_keep)  # F_s(x_v + p_v), (N, 1 + V, D)
        y = self.pixel_decoder(z_v, ids_restore)  # y', (N, L, P*P*3)
        y_s = self.feature_decoder(z_v, ids_restore).mean(1)  # (N, D)
        pred_s = self.predictor(self.projector(y_s))  # y_s^p, (N, E)
        with torch.no_grad():
            z_t = self.target_encoder(x_t)[:, 1:].mean(1)  # (N, D)
            proj_t = self.target_projector(z_t)  # z_t^p, (N, E)

        # L_r: masked patches only, pixels normalised per patch
        pixels = F.unfold(x_s, self.patch, stride=self.patch)  # (N, 3*P*P, L)
        pixels = pixels.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
        mean, var = pixels.mean(-1, True), pixels.var(-1, keepdim=True)
        pixels = (pixels - mean) / (var + 1e-6)**.5  # (N, L, P*P*3)
        loss_rc = (y - pixels)[mask].square().mean()

        # L_c: InfoNCE; negatives are the targets of the other images
        rho = F.normalize(pred_s) @ F.normalize(proj_t).t()  # (N, N)
        own = torch.arange(len(rho), device=rho.device)
        loss_ct = 2 * self.tau * F.cross_entropy(rho / self.tau, own)
        return loss_rc, self.lambda_c * loss_ct

    @torch.no_grad()
    def update_target(self):
        """theta_t <- mu theta_t + (1 - mu) theta_s, after optimizer steps."""
        for target, online in ((self.target_encoder, self.encoder),
                               (self.target_projector, self.projector)):
            source = dict(online.named_parameters())
            for name, average in target.named_parameters():
                average.lerp_(source[name], 1 - self.mu)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='folder of images')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--out', default='encoder.pth')
    args = parser.parse_args()
    paths = [str(p) for p in sorted(Path(args.folder).rglob('*'))
             if p.suffix.lower() in ('.jpg', '.jpeg', '.png', '.webp')]
    if len(paths) < 2:
        parser.error(f'{args.folder} has {len(paths)} images; 2 are needed')
    loader = torch.utils.data.DataLoader(
        paths, min(64, len(paths)), shuffle=True, drop_last=True)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = CMAE(size=SIZE).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # warm-up, then cosine
        optimizer, 1e-3, args.epochs * len(loader), cycle_momentum=False)
    for epoch in range(args.epochs):
        for batch in loader:
            views = zip(*map(two_views, batch))
            x_s, x_t = (torch.stack(view).to(device) for view in views)
            mask = model.draw_mask(len(x_s)).to(device)
            loss_rc, loss_ct = model(x_s, x_t, mask)
            optimizer.zero_grad()
            (loss_rc + loss_ct).backward()
            optimizer.step()
            schedule.step()
            model.update_target()
            print(f'epoch {epoch + 1}: L_r {loss_rc:.4f}, L_c {loss_ct:.4f}')
    torch.save(model.encoder.state_dict(), args.out)
