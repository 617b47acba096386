"""`init`: an encoder by file as the start of both branches."""
import math

import pytest
import torch
from tiny_training import log

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.pretraining import plan_pretraining
from cmae_mm.checkpoints import CheckpointError
from cmae_mm.cli.main import build_parser

# Nothing moves, so that what training ends with is what it started with.
STILL = {'optim_wrapper.optimizer.lr': 1e-12,
         'optim_wrapper.optimizer.weight_decay': 0.}


@pytest.fixture
def dino(tmp_path):
    """A small encoder under timm's names, with LayerScale."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(3)
    vit = timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=3,
        mlp_ratio=2, num_classes=7, init_values=0.5)
    torch.save(vit.state_dict(), tmp_path / 'dino.pth')
    return tmp_path / 'dino.pth', vit


def test_both_branches_start_from_it(photos, dino, smaller, tmp_path):
    path, vit = dino
    out = tmp_path / 'out'
    done = cmae_mm.pretrain(
        photos, 'mini', epochs=1, batch_size=8, num_workers=0, out=out,
        init=path, cfg_options={**smaller, **STILL})
    state = torch.load(done.checkpoint, weights_only=False)['state_dict']
    expected = vit.state_dict()['patch_embed.proj.weight']
    for branch in ('backbone', 'target.encoder'):
        torch.testing.assert_close(
            state[f'{branch}.patch_embed.projection.weight'], expected)
    said = log(out)
    assert f'{path} is an MAE or timm encoder' in said
    for part in ('LayerScale was multiplied into', 'not loaded: its head',
                 'pos_embed: 6x6 to 8x8', 'target starts as a copy of the '
                 'loaded encoder; decoders, projector and predictor are new'):
        assert part in said, part
    text = done.config.read_text()
    assert f'# start          encoder of {path}' in text
    # the same command resumes; without `init` the settings differ
    again = cmae_mm.pretrain(
        photos, 'mini', epochs=1, batch_size=8, num_workers=0, out=out,
        init=path, cfg_options={**smaller, **STILL})
    assert again.checkpoint == done.checkpoint
    with pytest.raises(ArgumentError, match='other settings .init '):
        cmae_mm.pretrain(photos, 'mini', epochs=1, batch_size=8,
                         num_workers=0, out=out,
                         cfg_options={**smaller, **STILL})


def test_a_folder_of_hugging_face(photos, smaller, tmp_path):
    transformers = pytest.importorskip('transformers')
    transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, image_size=48, patch_size=8,
        decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2)).save_pretrained(tmp_path / 'hf')
    done = cmae_mm.pretrain(
        photos, 'mini', epochs=1, batch_size=8, num_workers=0,
        out=tmp_path / 'out', init=tmp_path / 'hf',
        cfg_options={**smaller, **STILL})
    found, expected = map(
        cmae_mm.load_encoder, (done.checkpoint, tmp_path / 'hf'))
    name = 'layers.1.attn.qkv.weight'
    torch.testing.assert_close(found.backbone.state_dict()[name],
                               expected.backbone.state_dict()[name])
    assert 'Hugging Face encoder' in log(tmp_path / 'out')


def test_mismatch_raises_before_writing(
        photos, dino, pretrained, smaller, tmp_path):
    call = dict(data=photos, model='mini', num_workers=0, batch_size=4,
                out=tmp_path / 'out')
    with pytest.raises(CheckpointError, match='encoder is 48 wide and 2 layers'
                       ".*the model's 128 wide and 4 layers.*choose the model"
                       ):
        cmae_mm.pretrain(init=dino[0], **call)
    other = smaller['model.backbone.arch']
    for change, said in ((dict(num_heads=4), '3 attention heads, the model 4'),
                         (dict(feedforward_channels=64), 'misshapen')):
        options = {**smaller, 'model.backbone.arch': {**other, **change}}
        with pytest.raises(CheckpointError, match=said):
            cmae_mm.pretrain(init=pretrained.checkpoint, cfg_options=options,
                             **call)
    with pytest.raises(ArgumentError, match='there is no checkpoint none.pth'):
        cmae_mm.pretrain(init='none.pth', **call)
    with pytest.raises(ArgumentError, match='use the argument init, on which'):
        cmae_mm.pretrain(cfg_options={
            'model.backbone.init_cfg.checkpoint': 'x.pth'}, **call)
    with pytest.raises(ArgumentError, match='statistics .* does not exist'):
        cmae_mm.pretrain(stats='none.json', **call)
    assert not (tmp_path / 'out').exists()


def test_the_command_has_both_options(photos, dino):
    args = build_parser().parse_args(
        ['pretrain', str(photos), '--init', str(dino[0]), '--stats', 's.json'])
    assert (args.init, args.stats) == (str(dino[0]), 's.json')
    cfg, _, facts = plan_pretraining(
        photos, 'vit-s', init=dino[0], batch_size=2, cfg_options={
            'model.backbone.init_cfg.encoder': 'target'})
    # The same rule as from random weights.
    assert facts['learning_rate'] == pytest.approx(
        2.4e-3 * math.sqrt(2 / 4096))
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=str(dino[0]), encoder='target')
