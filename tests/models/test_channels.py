"""CMAE on images of any number of channels: losses, pictures, exports."""
import numpy as np
import pytest
import torch
from helpers import build, model_cfg
from safetensors.torch import load_file

from cmae_mm.checkpoints import export_encoder, read_checkpoint
from cmae_mm.checkpoints.encoder_config import read_encoder_record
from cmae_mm.models import TwoViewDataPreprocessor
from cmae_mm.visualization import prediction_columns, save_grid, to_rgb

CHANNELS = [1, 2, 4, 6, 16, 64]


def cmae(channels, dtype='uint8', **overrides):
    value_range = dict(value_range=(-1., 1.)) if dtype == 'float32' else {}
    preprocessor = dict(
        type='TwoViewDataPreprocessor', size=32, max_shift=4,
        mean=[1. + c for c in range(channels)], std=[2.] * channels,
        dtype=dtype, **value_range)
    return build(model_cfg(**{
        'backbone.in_channels': channels,
        'data_preprocessor': preprocessor, **overrides}))


def loss_by_loops(pred, images, mask, patch):
    """L_r in a loop over images, patches and pixels; C values a pixel."""
    total, count = 0, 0
    grid = images.shape[-1] // patch
    for n, image in enumerate(images):
        for place in range(grid**2):
            if not mask[n, place]:
                continue
            y, x = patch * (place // grid), patch * (place % grid)
            values = [image[c, y + i, x + j] for i in range(patch)
                      for j in range(patch) for c in range(len(image))]
            values = torch.stack(values)
            mean = values.sum() / len(values)
            variance = ((values - mean)**2).sum() / (len(values) - 1)
            wanted = (values - mean) / (variance + 1e-6).sqrt()
            total = total + ((pred[n, place] - wanted)**2).mean()
            count += 1
    return total / count


@pytest.mark.parametrize('channels', CHANNELS)
def test_losses_and_gradients_are_those_of_a_loop(channels):
    # the contrastive loss is float32 always, and sees no channels
    model = cmae(channels, contrastive=False).double()
    images = torch.randn(2, channels, 32, 32, dtype=torch.float64)
    mask = model.backbone.generate_mask(2, 'cpu')
    model.backbone.generate_mask = lambda *args: mask
    watched = [model.backbone.patch_embed.projection.weight,
               model.neck.pixel_decoder.decoder_pred.weight]
    loss = model.loss([images, images.flip(3)])['loss_rc']
    gradients = torch.autograd.grad(loss, watched)
    z_v, ids_restore = model.backbone(images, mask)
    pred = model.neck.pixel_decoder(z_v, ids_restore)
    assert pred.shape == (2, 64, 16 * channels)
    expected = loss_by_loops(pred, images, mask, 4)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for gradient, by_hand in zip(
            gradients, torch.autograd.grad(expected, watched)):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, by_hand, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('channels, dtype', [
    (1, 'uint16'), (4, 'uint8'), (6, 'float32')])
def test_a_step_moves_both_branches(channels, dtype):
    model = cmae(channels, dtype)
    high = dict(uint8=255, uint16=4095, float32=1)[dtype]
    canvas = torch.rand(4, channels, 40, 40) * high
    data = dict(inputs=canvas.to(getattr(torch, dtype)))
    views = model.data_preprocessor(data, training=True)['inputs']
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.target.follow(optimizer, model.backbone, model.neck.projector)
    name = 'patch_embed.projection.weight'
    before = model.target.encoder.state_dict()[name].clone()
    sum(v for k, v in model.loss(views).items() if 'loss' in k).backward()
    optimizer.step()
    after = model.target.encoder.state_dict()[name]
    moved = (after - before).abs().amax(dim=(0, 2, 3))
    assert moved.shape == (channels, ) and (moved > 0).all()


@pytest.mark.parametrize('channels', [1, 4, 13])
def test_timm_takes_the_export_and_gives_the_same_tokens(channels, tmp_path):
    timm = pytest.importorskip('timm')
    model = cmae(channels, 'uint16').eval()
    path = tmp_path / 'vit.safetensors'
    settings = dict(bands=list(range(channels)), fill=0)
    export_encoder(model, str(path), to='timm', images=settings)
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=4, in_chans=channels, embed_dim=48, depth=2,
        num_heads=4, mlp_ratio=2, num_classes=0).eval()
    vit.load_state_dict(load_file(path))
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            vit.forward_features(images), model.backbone(images)[0],
            atol=1e-5, rtol=1e-4)
    facts = read_encoder_record(read_checkpoint(str(path)).meta)
    assert facts['mean'] == [1. + c for c in range(channels)]
    assert facts['images'] == dict(
        channels=channels, dtype='uint16', **settings)


def test_hugging_face_takes_as_many_channels(tmp_path):
    transformers = pytest.importorskip('transformers')
    model = cmae(5).eval()
    export_encoder(model, str(tmp_path / 'vit'), to='hf')
    vit = transformers.ViTModel.from_pretrained(
        str(tmp_path / 'vit'), add_pooling_layer=False).eval()
    images = torch.randn(2, 5, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            vit(images).last_hidden_state, model.backbone(images)[0],
            atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('channels', [1, 3, 6])
def test_pictures_show_three_channels_or_grey(channels, tmp_path):
    model = cmae(channels, 'uint16')
    model.data_preprocessor = TwoViewDataPreprocessor(
        32, mean=[1000.] * channels, std=[500.] * channels, dtype='uint16',
        value_range=(0, 4000))
    raw = torch.randint(0, 4001, (2, channels, 32, 32)).float()
    views = [(raw - 1000) / 500] * 2
    columns = prediction_columns(model, views[0])
    shown = (raw / 4000 * 255)
    expected = shown if channels == 3 else shown.mean(1, keepdim=True)
    expected = expected.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    assert np.abs(columns['input'] - expected).max() <= 0.51
    # removed patches are mid grey, whatever the mean is
    grey = (columns['masked'] == 128).all(axis=-1).mean()
    assert grey == pytest.approx(0.65, abs=0.05)
    save_grid(str(tmp_path / 'r.png'), columns)
    assert (tmp_path / 'r.png').stat().st_size > 1000
    order = [channels - 1, 0, channels // 2]
    picked = to_rgb(views[0], model.data_preprocessor, order)
    assert np.abs(picked - shown[:, order].permute(
        0, 2, 3, 1).numpy()).max() <= 0.51
    one = to_rgb(views[0], model.data_preprocessor, [0])
    assert (one == one[..., :1]).all()
    for wrong in ([0, 0], [channels], [-1]):
        with pytest.raises(ValueError, match='one channel or three'):
            to_rgb(views[0], model.data_preprocessor, wrong)
