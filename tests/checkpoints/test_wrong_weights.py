"""Invalid weights and metadata raise one sentence."""
import time

import pytest
import torch
from helpers import build, model_cfg
from mmengine.config import Config
from mmpretrain.registry import MODELS
from safetensors.torch import save_file
from torch import nn
from transfer_models import ARCH as ARCH_OF
from transfer_models import transfer_vit

import cmae_mm
from cmae_mm.checkpoints import (CheckpointError, export_encoder, find_encoder,
                                 load_encoder_into, load_pretraining_model,
                                 read_checkpoint)
from cmae_mm.checkpoints.encoder_config import KEY

NAME = 'layers.1.attn.qkv.weight'
NORM = 'layers.0.ln1.weight'
FACTS = dict(num_heads=4, mean=[120.] * 3, std=[60.] * 3)


@pytest.fixture(scope='module')
def state():
    return build(model_cfg()).backbone.state_dict()


def write(path, state, facts=FACTS, **meta) -> str:
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in state.items()},
                    meta={KEY: facts, **meta}), path)
    return str(path)


def refused(path, **kwargs) -> str:
    """Load a file in both ways; give the one sentence that refuses it."""
    for load in (lambda: cmae_mm.load_encoder(path, **kwargs),
                 lambda: load_encoder_into(transfer_vit(), str(path))):
        with pytest.raises(CheckpointError) as error:
            load()
        said = str(error.value)
        assert said.startswith(str(path)), said
    return said


def spoilt(state, name, change):
    return {**state, name: change(state[name].clone())}


def with_value(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor
    return change


@pytest.mark.parametrize('change, words', [
    (with_value(float('nan')), '1 of 30 tensors are not finite'),
    (with_value(float('inf')), 'not finite'),
    (with_value(-float('inf')), 'not finite'),
    (lambda t: t.double().fill_(1e300), 'not finite'),
    (lambda t: t.to(torch.complex64), 'are of torch.complex64'),
    (lambda t: t.long(), 'are of torch.int64'),
    (lambda t: t > 0, 'are of torch.bool'),
    (lambda t: t.to(torch.uint8), 'are of torch.uint8'),
    (lambda t: t[0, 0], r'misshapen|fit'),
    (lambda t: t[:0], 'misshapen|fit'),
    (lambda t: t[None], 'misshapen|fit'),
    (lambda t: t.to_sparse(), 'holds a sparse tensor'),
    (lambda t: t.to('meta'), 'holds a meta tensor'),
    (lambda t: torch.quantize_per_tensor(t, 1., 0, torch.qint8),
     'holds a quantised tensor'),
    (lambda t: nn.Parameter(t).as_subclass(nn.Parameter), None),
    (lambda t: t.requires_grad_(), None),
])
@pytest.mark.filterwarnings('ignore')
def test_weights_are_finite_numbers(state, change, words, tmp_path):
    path = write(tmp_path / 'a.pth', spoilt(state, NAME, change))
    if words is None:
        cmae_mm.load_encoder(path)
        return
    said = refused(path)
    assert any(word in said for word in words.split('|')), said


@pytest.mark.parametrize('name', [
    'patch_embed.projection.weight', 'pos_embed', 'cls_token', NORM,
    'layers.0.ffn.layers.0.0.weight', 'layers.0.attn.qkv.bias'])
@pytest.mark.parametrize('change', [
    lambda t: t.flatten()[0], lambda t: t[..., :0], lambda t: t[None, None],
    lambda t: t.flatten(), lambda t: torch.zeros(0), None])
def test_every_shape_is_checked(state, name, change, tmp_path):
    changed = {k: v for k, v in state.items() if k != name}
    if change is not None:
        changed[name] = change(state[name])
        if changed[name].shape == state[name].shape:
            return
    if name == 'cls_token' and change is None:
        with pytest.raises(CheckpointError, match='missing'):
            load_encoder_into(transfer_vit(), write(
                tmp_path / 'a.pth', changed))
    else:
        refused(write(tmp_path / 'a.pth', changed))


@pytest.mark.parametrize('dtype', [
    torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('zipped', [True, False])
def test_other_precisions_are_converted(state, dtype, zipped, tmp_path):
    """And the features are those of the converted weights."""
    half = {f'backbone.{k}': v.to(dtype) for k, v in state.items()}
    torch.save(dict(state_dict=half, meta={KEY: FACTS}), tmp_path / 'a.pth',
               _use_new_zipfile_serialization=zipped)
    encoder = cmae_mm.load_encoder(tmp_path / 'a.pth')
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    vit = transfer_vit(out_type='raw').eval()
    vit.load_state_dict({k: v.to(dtype).float() for k, v in state.items()})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.tokens(images), vit(images)[0], rtol=0, atol=0)


def test_tensors_may_share_memory(state, tmp_path):
    shared = {**state, NORM: state['layers.1.ln1.weight']}
    assert shared[NORM].data_ptr() == shared['layers.1.ln1.weight'].data_ptr()
    encoder = cmae_mm.load_encoder(write(tmp_path / 'a.pth', shared))
    one, other = (encoder.backbone.layers[i].ln1.weight for i in (0, 1))
    assert one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize('facts, words', [
    (dict(num_heads=0), 'num_heads=0, but a whole number from 1'),
    (dict(num_heads=-3), 'num_heads=-3'),
    (dict(num_heads=True), 'num_heads=True'),
    (dict(num_heads='4'), "num_heads='4'"),
    (dict(num_heads=4.), 'num_heads=4.0'),
    (dict(num_heads=10**40), 'num_heads=1000000'),
    (dict(num_heads=5), 'does not divide the width|4'),
    (dict(num_heads=[4]), 'num_heads=[4]'),
    (dict(std=[0.] * 3), 'a finite number above 0'),
    (dict(std=[1., -1., 1.]), 'a finite number above 0'),
    (dict(std=[1e-45] * 3), 'a finite number above 0'),
    (dict(std=[1.]), 'of as many channels'),
    (dict(std=None), 'of as many channels'),
    (dict(mean=None), 'of as many channels'),
    (dict(mean=[float('nan')] * 3), 'a finite number for each channel'),
    (dict(mean=[1e300] * 3), 'a finite number for each channel'),
    (dict(mean=[10**400] * 3), 'a finite number for each channel'),
    (dict(mean=['1', '2', '3']), 'a finite number for each channel'),
    (dict(mean=[True] * 3), 'a finite number for each channel'),
    (dict(mean=[]), 'a finite number for each channel'),
    (dict(mean=5.), 'a finite number for each channel'),
    (dict(mean=[1.] * 4, std=[1.] * 4), '3 channel(s)'),
    (dict(value_range=[[0.], [1.]]), 'of as many channels'),
    (dict(value_range=[[1.] * 3, [1.] * 3]), 'a greater one for white'),
    (dict(value_range=[[0.] * 3]), 'a greater one for white'),
    (dict(value_range='per_image'), 'a greater one for white'),
    (dict(images=dict(channels=0)), 'channels must be'),
    (dict(images=dict(channels=4)), '3 channel(s)'),
    (dict(mean=[1.] * 4, std=[1.] * 4, images=dict(channels=3)),
     '3 channel(s)'),
    (dict(images=dict(channels=3.)), 'channels must be'),
    (dict(images=dict(dtype='float64')), 'dtype must be'),
    (dict(images=dict(bands=[-1, 0, 1])), 'bands must be'),
    (dict(images=dict(bands=7)), 'cannot be used'),
    (dict(images=dict(window=[1., 0.])), 'window must be'),
    (dict(images=dict(window=3)), 'cannot be used'),
    (dict(images=dict(fill='median')), 'fill must be'),
    (dict(images=dict(nothing=1)), 'cannot be used'),
    (dict(images={1: 2}), 'cannot be used'),
    (dict(images='RGB'), 'a dict of settings'),
    (dict(mean=None, std=None, value_range=[[0.] * 4, [1.] * 4]),
     'of as many channels'),
    (dict(mean=None, std=None, images=dict(dtype='uint16')),
     'does not record their normalisation|needs torch 2.3'),
    (dict(target_with_cls_token='yes'), 'True or False'),
])
def test_facts_are_checked(state, facts, words, tmp_path):
    """In both kinds of files."""
    path = write(tmp_path / 'a.pth', state, {**FACTS, **facts})
    save_file({f'backbone.{k}': v for k, v in state.items()},
              tmp_path / 'b.safetensors', {KEY: str({**FACTS, **facts})})
    for file in (path, str(tmp_path / 'b.safetensors')):
        with pytest.raises(CheckpointError) as error:
            cmae_mm.load_encoder(file)
        said = str(error.value)
        assert said.startswith(file) and '\n' not in said
        # NaN is no literal of safetensors' strings
        assert any(w in said for w in (*words.split('|'), 'a dict of plain'))


@pytest.mark.parametrize('facts', [
    'no dict', '[1]', '{', 'dict(a=1)', '(' * 5000, [1], 3, True, b'x'])
def test_facts_of_another_form_are_refused(state, facts, tmp_path):
    said = refused(write(tmp_path / 'a.pth', state, facts))
    assert 'a dict of plain values is needed' in said and len(said) < 400


def test_names_are_text_and_unique(state, tmp_path):
    for change, words in (({0: torch.zeros(1)}, 'names a tensor 0'),
                          ({(1, 'a'): torch.zeros(1)}, 'names a tensor (1'),
                          ({'module.a': torch.zeros(1), 'a': torch.zeros(1)},
                           'a under two names')):
        torch.save({**state, **change}, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(str(tmp_path / 'a.pth'))
        assert words in str(error.value) and 'a.pth' in str(error.value)
    timm = {'blocks.0.x': torch.zeros(1), 'layers.0.x': torch.zeros(1)}
    with pytest.raises(CheckpointError, match='layers.0.x under two names'):
        find_encoder(timm)


def test_a_number_of_layers_is_counted(state, tmp_path):
    """Numbers in names do not make a network of a thousand million layers."""
    far = {k.replace('layers.1.', 'layers.999999999.'): v
           for k, v in state.items()}
    assert 'missing' in refused(write(tmp_path / 'a.pth', far))


def test_a_wide_encoder_takes_no_memory_before_it_fits(state, tmp_path):
    """A width of a million would take terabytes."""
    wide = spoilt(state, 'patch_embed.projection.weight',
                  lambda t: torch.zeros(2**20, 3, 1, 1))
    wide['pos_embed'] = torch.zeros(1, 5, 1)
    refused(write(tmp_path / 'a.pth', wide))


def test_foreign_names_with_wrong_shapes(tmp_path):
    """Every layout, with tensors that are no encoder's."""
    model = build(model_cfg())
    for to in ('timm', 'hf', 'mmpretrain', 'mmdet'):
        folder = tmp_path / to
        out = folder if to == 'hf' else tmp_path / f'{to}.safetensors'
        export_encoder(model, str(out), to)
        whole = read_checkpoint(str(out)).state
        for shape in ((), (0, ), (1, ), (2, 2), (1, 3, 2), (1, 1, 1, 1)):
            # The pooler of transformers is not read.
            for name in [k for k in whole if 'pooler.' not in k][:12]:
                changed = {**whole, name: torch.zeros(shape)}
                torch.save(changed, tmp_path / 'a.pth')
                with pytest.raises(CheckpointError):
                    cmae_mm.load_encoder(tmp_path / 'a.pth', num_heads=4)
    export_encoder(model, str(tmp_path / 'timm.pth'), 'timm')
    whole = read_checkpoint(str(tmp_path / 'timm.pth')).state
    for extra in ({'reg_token': torch.tensor(1.)},
                  {'blocks.0.ls1.gamma': torch.ones(7)}):
        torch.save({**whole, **extra}, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match='not by its shapes'):
            cmae_mm.load_encoder(tmp_path / 'a.pth', num_heads=4)


BACKBONE, ARCH = 'model.backbone.', 'model.backbone.arch.'


@pytest.mark.parametrize('change', [
    {f'{BACKBONE}img_size': 3}, {f'{BACKBONE}img_size': 0},
    {f'{BACKBONE}img_size': 2**40},
    {f'{BACKBONE}img_size': 'x'}, {f'{BACKBONE}img_size': None},
    {f'{BACKBONE}patch_size': 0}, {f'{BACKBONE}patch_size': -4},
    {f'{BACKBONE}in_channels': 10**9}, {f'{BACKBONE}mask_ratio': 2},
    {f'{BACKBONE}mask_ratio': float('nan')}, {f'{BACKBONE}unknown': 1},
    {f'{ARCH}num_heads': 0}, {f'{ARCH}num_heads': True},
    {f'{ARCH}embed_dims': 10**9}, {f'{ARCH}embed_dims': -48},
    {f'{ARCH}num_layers': 10**9}, {f'{ARCH}feedforward_channels': 2**50},
    {'model.neck.pixel_decoder.decoder_depth': 10**9},
    {'model.neck.projector.hid_channels': 2**40},
    {'model.data_preprocessor': dict(
        type='TwoViewDataPreprocessor', size=32, mean=[0.] * 3,
        std=[0.] * 3)},
])
def test_the_config_in_a_checkpoint_fits_its_weights(change, tmp_path):
    """In no time, and before memory is taken."""
    cfg = Config(dict(model=model_cfg(), data_preprocessor=None))
    model = build(cfg.model)
    cfg.merge_from_dict(change)
    torch.save(dict(state_dict=model.state_dict(),
                    meta={'cfg': cfg.pretty_text, KEY: dict(num_heads=4)}),
               tmp_path / 'a.pth')
    start = time.monotonic()
    with pytest.raises(CheckpointError, match='a.pth: '):
        load_pretraining_model(tmp_path / 'a.pth')
    assert time.monotonic() - start < 20


@pytest.mark.parametrize('img_size', [3, 2**20, 2**32, 2**60])
def test_invalid_image_sizes_raise(state, img_size, tmp_path):
    path = write(tmp_path / 'a.pth', state)
    with pytest.raises(CheckpointError,
                       match='a.pth: .*(images of|does not divide)'):
        cmae_mm.load_encoder(path, img_size=img_size)


def test_detectors_and_hybrids_check_every_shape_too(state, tmp_path):
    vit = MODELS.build(dict(
        type='TransferViTDet', img_size=32, patch_size=4,
        arch=dict(ARCH_OF, global_attn_indexes=[0])))
    for name in ('pos_embed', 'patch_embed.projection.weight', NORM):
        for change in (lambda t: t.flatten()[0],
                       lambda t: t[:, :t.shape[1] - 1],
                       lambda t: t[..., :0]):
            if name == NORM:
                change = torch.zeros_like
            changed = {k.replace('layers.0.ln1', 'layers.0.ln9'): v
                       for k, v in spoilt(state, name, change).items()}
            with pytest.raises(CheckpointError, match='a.pth: '):
                load_encoder_into(vit, write(tmp_path / 'a.pth', changed))
    hybrid = build(dict(type='TransferConvViT', arch='mini', img_size=64))
    whole = hybrid.state_dict()
    for name in ('conv_stages.0.blocks.0.depthwise.weight',
                 'conv_stages.1.patch_embed.projection.weight', 'pos_embed',
                 'layers.0.ffn.layers.0.0.weight'):
        for change in (lambda t: t.flatten()[0], lambda t: t[:1, :2],
                       lambda t: t[..., :0]):
            refused(write(tmp_path / 'a.pth', spoilt(whole, name, change)))
