"""The plugin matches the example in plain PyTorch."""
import re
import sys

import pytest
import torch
from helpers import ROOT, build, model_cfg, run_tool, write_images

sys.path.insert(0, str(ROOT / 'examples'))
import cmae_plain  # noqa: E402

# From the plugin's names to the page's, in this order.
NAMES = (
    (r'^backbone\.', 'encoder.'),
    (r'^target\.encoder\.', 'target_encoder.'),
    (r'^target\.projector\.', 'target_projector.'),
    (r'^neck\.', ''),
    (r'^head\.contrastive\.', ''),
    (r'\.(decoder_)?pos_embed$', '.positions'),
    (r'\.(patch_embed\.projection|decoder_embed)\.', '.embed.'),
    (r'\.decoder_pred\.', '.predict.'),
    (r'\.decoder_blocks\.', '.layers.'),
    (r'(layers\.\d+)\.ln(\d)\.', r'\1.norm\2.'),
    (r'\.ln1\.', '.norm.'),
    (r'\.attn\.qkv\.', '.self_attn.in_proj_'),
    (r'\.attn\.proj\.', '.self_attn.out_proj.'),
    (r'\.ffn\.layers\.0\.0\.', '.linear1.'),
    (r'\.ffn\.layers\.1\.', '.linear2.'),
    (r'(projector|predictor)\.fc0\.', r'\1.0.'),
    (r'(projector|predictor)\.bn0\.', r'\1.1.'),
    (r'(projector|predictor)\.fc1\.', r'\1.3.'),
)


def renamed(tensors):
    """Tensors with the names of the page."""
    made = {}
    for name, value in tensors.items():
        for ours, theirs in NAMES:
            name = re.sub(ours, theirs, name)
        made[name] = value
    return made


@pytest.mark.parametrize('block, ratio', [(2, 0.65), (1, 0.75)])
def test_the_plugin_and_the_page_train_alike(block, ratio):
    torch.manual_seed(0)
    cfg = model_cfg(**{
        'backbone.arch.feedforward_channels': 4 * 48,
        'backbone.mask_block': block, 'backbone.mask_ratio': ratio})
    plugin = build(cfg)
    page = cmae_plain.CMAE(
        size=32, patch=4, width=48, depth=2, heads=4, decoder=32,
        decoder_depth=1, hidden=24, projection=16)
    state = renamed({k: v.clone() for k, v in plugin.state_dict().items()})
    assert state.pop('target.steps') == 0
    page.load_state_dict(state)  # every name, and no other

    models = plugin, page
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        for m in models
    ]
    plugin.target.follow(
        optimizers[0], plugin.backbone, plugin.neck.projector)
    page.mask_ratio, page.block = ratio, block
    for _ in range(4):
        x_s, x_t = torch.randn(2, 6, 3, 32, 32)
        mask = page.draw_mask(6)
        assert torch.equal(
            mask.sum(1), plugin.backbone.generate_mask(6, 'cpu').sum(1))
        plugin.backbone.generate_mask = lambda n, device, mask=mask: mask
        losses = plugin.loss([x_s, x_t])
        ours = losses['loss_rc'], losses['loss_ct']
        theirs = page(x_s, x_t, mask)
        # Orders of sums differ, and steps of 0.1 let it grow.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
        for optimizer, pair in zip(optimizers, (ours, theirs)):
            optimizer.zero_grad()
            sum(pair).backward()
        gradients = renamed(
            {n: p.grad for n, p in plugin.named_parameters()
             if p.requires_grad})
        expected = {n: p.grad for n, p in page.named_parameters()
                    if p.requires_grad}
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            # Shifts before a BatchNorm have rounding noise for a gradient.
            scale = max(value.abs().max().item(), 0.5)
            assert (gradients[name] - value).abs().max() < 3e-4 * scale, name
        for optimizer in optimizers:
            optimizer.step()
        page.update_target()
        del plugin.backbone.generate_mask
    assert plugin.target.steps == 4
    made, expected = renamed(plugin.state_dict()), page.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(
            made[name], value, rtol=1e-4, atol=5e-5, msg=name)
    # it has moved, and so far that a wrong mu would show
    moved = made['target_projector.3.weight'] - state[
        'target_projector.3.weight']
    assert moved.abs().max() > 1e-5


def test_plain_example_is_short_and_trains_on_a_folder(tmp_path):
    script = ROOT / 'examples/cmae_plain.py'
    assert len(script.read_text().splitlines()) < 200
    write_images(tmp_path / 'images/class', 4, size=80)
    shown = run_tool('python', script, tmp_path / 'images', '--epochs', 2,
                     '--out', tmp_path / 'encoder.pth')
    losses = re.findall(r'L_r (\S+), L_c (\S+)', shown)
    assert len(losses) == 2 and losses[0] != losses[1]
    encoder = cmae_plain.Encoder(8, 8, 128, 4, 4)
    encoder.load_state_dict(torch.load(tmp_path / 'encoder.pth'))
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, 65, 128)
