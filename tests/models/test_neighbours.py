"""Other methods of mmpretrain's on CMAE's encoder: the same, read the same."""
import copy

import pytest
import torch
from helpers import ROOT, write_images
from mmengine.config import Config
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

import cmae_mm
from cmae_mm.apis.encoder import load_encoder_by_config
from cmae_mm.config import load_config
from cmae_mm.models import CMAEViT, SimMIMViT

FOLDER = ROOT / 'configs/cifar10'
NAMES = ('simmim', 'mocov3', 'byol')
SMALL = dict(
    arch=dict(embed_dims=48, num_layers=2, num_heads=3,
              feedforward_channels=96), img_size=16, patch_size=4)


def read(name):
    return Config.fromfile(FOLDER / f'neighbours/{name}_vit-mini_20e.py')


@pytest.fixture
def simmim_vit():
    torch.manual_seed(0)
    vit = SimMIMViT(**SMALL)
    vit.init_weights()
    vit.eval()  # mmpretrain's gives nothing back
    return vit


@torch.no_grad()
def test_simmims_encoder_does_not_see_masked_patches(simmim_vit):
    images = torch.randn(2, 3, 16, 16)
    mask = torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[0, 1, 2] = mask[1, 3, 0] = 1
    out, = simmim_vit(images, mask)
    other = images.clone()
    other[0, :, 4:8, 8:12] += 5.
    other[1, :, 12:, :4] -= 3.
    assert out.shape == (2, 48, 4, 4)
    torch.testing.assert_close(simmim_vit(other, mask)[0], out)
    # ... and all of the others
    other[0, :, :4, :4] += 1.
    assert (simmim_vit(other, mask)[0] - out).abs().amax() > 1e-3


@torch.no_grad()
def test_without_a_mask_it_is_mmpretrains_vision_transformer(simmim_vit):
    plain = VisionTransformer(**SMALL, out_type='featmap')
    plain.eval()
    state = simmim_vit.state_dict()
    del state['mask_token']
    plain.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    expected = plain(images)[-1]
    unmasked, = simmim_vit(images, torch.zeros(2, 4, 4, dtype=torch.int64))
    torch.testing.assert_close(unmasked, expected)
    tokens, = simmim_vit(images)
    torch.testing.assert_close(
        tokens[:, 1:].transpose(1, 2).reshape(2, 48, 4, 4), expected)


@pytest.mark.parametrize('name', NAMES)
def test_a_neighbour_differs_in_the_method_alone(name):
    ours = Config.fromfile(FOLDER / 'cmae_vit-mini_20e.py')
    theirs = read(name)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'evaluation',
                'auto_scale_lr', 'default_hooks', 'randomness'):
        assert theirs[key] == ours[key], key
    for key in ('batch_size', 'drop_last', 'sampler'):
        assert theirs.train_dataloader[key] == ours.train_dataloader[key]
    for key in ('mean', 'std', 'to_rgb'):
        assert theirs.data_preprocessor[key] == ours.data_preprocessor[key]
    encoders = []
    for cfg in (ours, theirs):
        encoder = MODELS.build(copy.deepcopy(cfg.model.backbone))
        encoder.init_weights()
        encoders.append(encoder)
    sizes = [{k: v.shape for k, v in e.state_dict().items()
              if k != 'mask_token'} for e in encoders]
    assert isinstance(encoders[0], CMAEViT) and sizes[0] == sizes[1]
    # fixed positions, the same
    assert not encoders[1].pos_embed.requires_grad
    torch.testing.assert_close(encoders[1].pos_embed, encoders[0].pos_embed)


@pytest.mark.parametrize('name', NAMES)
def test_commands_and_python_read_its_checkpoints(name, tmp_path):
    """By the same features as mmpretrain's own encoder with its weights."""
    for split in ('train', 'test'):
        write_images(tmp_path / split / 'a', 2)
    config = FOLDER / f'neighbours/{name}_vit-mini_20e.py'
    cfg = load_config(str(config), [
        f'train_dataloader.dataset.data_root={tmp_path}'])
    cfg.work_dir = str(tmp_path / 'work')
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    file = tmp_path / 'epoch_20.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        encoder_facts=dict(num_heads=3))), file)
    plain = VisionTransformer(
        cfg.model.backbone.arch, 32, 4, out_type='raw')
    plain.eval()
    plain.load_state_dict({
        k.removeprefix('backbone.'): v for k, v in model.state_dict().items()
        if k.startswith('backbone.') and 'mask_token' not in k})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = plain(images)[-1]
    for loaded in (load_encoder_by_config(config, file),
                   cmae_mm.load_encoder(file)):
        found = loaded.tokens(images)
        torch.testing.assert_close(
            loaded.pooled(found, 'mean'), tokens[:, 1:].mean(1))
        torch.testing.assert_close(loaded.pooled(found, 'cls'), tokens[:, 0])
    with pytest.raises(ValueError, match='no target encoder'):
        load_encoder_by_config(config, file, 'target')
