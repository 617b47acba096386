"""Converted checkpoints, verified by features in the real libraries."""
import argparse
import errno
import json
import os
import pickle
import stat

import pytest
import timm
import torch
import transformers
from helpers import build, model_cfg, run_commands, run_tool, runner_cfg
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from plain_reference import make_trace
from timm.layers import resample_abs_pos_embed

import cmae_mm
from cmae_mm.checkpoints import (CheckpointError, export_cmae, export_encoder,
                                 find_encoder, load_encoder, load_model,
                                 load_state, read_checkpoint,
                                 resample_pos_embed, write_checkpoint)

# width, depth, heads, image, patch
ARCHS = [(48, 2, 4, 32, 4), (64, 3, 4, 48, 8), (32, 1, 4, 64, 16)]


def make_model(width, depth, heads, img, patch):
    model = build(
        model_cfg(width, depth, img, patch, **{'backbone.mask_block': 1}))
    with torch.no_grad():  # no weight at a value that hides a mistake
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    model.eval()
    return model


def our_tokens(model, image, encoder):
    with torch.no_grad():
        return model.extract_feat(image, pool='none', encoder=encoder)


def assert_same(theirs, ours):
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 1e-5


@pytest.mark.parametrize('encoder', ['online', 'target'])
@pytest.mark.parametrize('arch', ARCHS)
class TestExports:

    @pytest.fixture
    def setup(self, arch, encoder, tmp_path):
        model = make_model(*arch)
        image = torch.randn(2, 3, arch[3], arch[3])
        return model, image, our_tokens(model, image, encoder), tmp_path

    def test_timm(self, arch, encoder, setup):
        model, image, ours, tmp_path = setup
        width, depth, heads, img, patch = arch
        path = tmp_path / 'vit.safetensors'
        export_encoder(model, str(path), 'timm', encoder)
        vit = timm.models.VisionTransformer(
            img_size=img,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=2,
            num_classes=0,
            final_norm=encoder == 'online')
        vit.load_state_dict(read_checkpoint(str(path)).state, strict=True)
        vit.eval()
        with torch.no_grad():
            assert_same(vit.forward_features(image), ours)

    @pytest.mark.parametrize('to, cls', [('hf', 'ViTModel'),
                                         ('hf_vitmae', 'ViTMAEModel')])
    def test_transformers(self, arch, encoder, setup, to, cls):
        model, image, ours, tmp_path = setup
        export_encoder(model, str(tmp_path / 'hf'), to, encoder)
        vit, info = getattr(transformers, cls).from_pretrained(
            tmp_path / 'hf', output_loading_info=True)
        assert not info['missing_keys']
        spare = {k.split('.')[0] for k in info['unexpected_keys']}
        assert spare == ({'decoder'} if to == 'hf_vitmae' and (
            encoder == 'online') else set())
        vit.eval()
        options = {}
        if to == 'hf_vitmae':
            # its own random mask, switched off; and patches put in order
            vit.config.mask_ratio = 0.
            noise = torch.arange(ours.shape[1] - 1.).expand(2, -1)
            options = dict(noise=noise)
        with torch.no_grad():
            out = vit(image, output_hidden_states=True, **options)
        assert_same(
            out.last_hidden_state
            if encoder == 'online' else out.hidden_states[-1], ours)

    @pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
    def test_mmpretrain(self, arch, encoder, setup, suffix):
        model, image, ours, tmp_path = setup
        path = str(tmp_path / f'vit{suffix}')
        export_encoder(model, path, 'mmpretrain', encoder)
        width, depth, heads, img, patch = arch
        vit = MODELS.build(
            dict(
                type='VisionTransformer',
                arch=model.backbone.arch_settings,
                img_size=img,
                patch_size=patch,
                out_type='raw',
                final_norm=encoder == 'online',
                init_cfg=dict(
                    type='Pretrained', checkpoint=path, prefix='backbone.')))
        vit.init_weights()
        vit.eval()
        with torch.no_grad():
            assert_same(vit(image)[-1], ours)

    def test_mmseg(self, arch, encoder, setup):
        """Feature maps after any block, as a segmentor takes them."""
        model, image, ours, tmp_path = setup
        path = str(tmp_path / 'vit.safetensors')
        export_encoder(model, path, 'mmseg', encoder)
        width, depth, heads, img, patch = arch
        vit = MODELS.build(
            dict(
                type='VisionTransformer',
                arch=model.backbone.arch_settings,
                img_size=img,
                patch_size=patch,
                out_type='featmap',
                out_indices=[depth - 1],
                final_norm=encoder == 'online',
                init_cfg=dict(
                    type='Pretrained', checkpoint=path, prefix='backbone.')))
        vit.init_weights()
        vit.eval()
        with torch.no_grad():
            feature = vit(image)[-1]
        assert_same(feature.flatten(2).transpose(1, 2), ours[:, 1:])

    def test_mmdet(self, arch, encoder, setup):
        """ViTSAM has no class token and no final norm, nor has ours here."""
        model, image, _, tmp_path = setup
        path = str(tmp_path / 'vit.safetensors')
        export_encoder(model, path, 'mmdet', encoder)
        width, depth, heads, img, patch = arch
        vit = MODELS.build(
            dict(
                type='ViTSAM',
                arch=dict(
                    model.backbone.arch_settings,
                    global_attn_indexes=list(range(depth))),
                img_size=img,
                patch_size=patch,
                out_channels=0,
                use_rel_pos=False,
                out_type='featmap',
                init_cfg=dict(
                    type='Pretrained', checkpoint=path, prefix='backbone.')))
        vit.init_weights()
        vit.eval()
        source = model.backbone if encoder == 'online' else (
            model.target.encoder)
        with torch.no_grad():
            tokens = source.embed(image)[:, 1:]
            for layer in source.layers:
                tokens = layer(tokens)
            assert_same(vit(image)[-1].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize('img', [16, 48, 80])
def test_positions_are_resampled_as_timm_does(img):
    pos = torch.randn(1, 1 + 64, 24)
    ours = resample_pos_embed(pos, img // 4)
    theirs = resample_abs_pos_embed(pos, [img // 4, img // 4])
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[:, :1], pos[:, :1])


def test_export_for_another_image_size(tmp_path):
    model = make_model(*ARCHS[0])
    path = str(tmp_path / 'vit.safetensors')
    export_encoder(model, path, 'timm', img_size=48)
    state = read_checkpoint(path).state
    theirs = resample_abs_pos_embed(model.backbone.pos_embed, [12, 12])
    torch.testing.assert_close(state['pos_embed'], theirs.detach())
    with pytest.raises(CheckpointError, match='does not divide img_size=50'):
        export_encoder(model, path, 'timm', img_size=50)


def test_import_export_import_is_bit_for_bit(tmp_path):
    _, tensors = make_trace(str(tmp_path / 'trace.safetensors'))
    official = {
        k.removeprefix('final.'): v
        for k, v in tensors.items() if k.startswith('final.')
    }
    # as mmengine's runner would have saved it
    torch.save(
        dict(state_dict=official, meta=dict(epoch=7), optimizer={}),
        tmp_path / 'official.pth')
    cfg = model_cfg(img_size=16, **{
        'backbone.arch.num_heads': 3,
        'neck.pixel_decoder.mlp_ratio': 2.,
        'neck.feature_decoder.mlp_ratio': 2.
    })
    first, second = build(cfg), build(cfg)
    state, meta = read_checkpoint(str(tmp_path / 'official.pth'))
    assert meta['epoch'] == 7
    report = load_model(first, state)
    assert report.fits and len(report.matched) == len(official)
    for suffix in ('safetensors', 'pth'):
        path = str(tmp_path / f'again.{suffix}')
        export_cmae(first, path)
        again = read_checkpoint(path).state
        assert set(again) == set(official)
        assert all(torch.equal(again[k], v) for k, v in official.items())
        load_model(second, again)
        for name, value in first.state_dict().items():
            assert torch.equal(second.state_dict()[name], value), name


def test_fair_mae_becomes_the_encoder():
    vit = timm.models.VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0)
    state = dict(vit.state_dict())
    state.update(
        mask_token=torch.zeros(1, 1, 32),
        decoder_pos_embed=torch.zeros(1, 65, 32))
    state['decoder_blocks.0.norm1.weight'] = torch.zeros(32)
    state['decoder_pred.weight'] = torch.zeros(48, 32)
    model = build(model_cfg()).eval()
    assert load_state(model.backbone, find_encoder(state).state).fits
    vit.eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_same(our_tokens(model, image, 'online'),
                    vit.forward_features(image))


def test_mismatched_keys_are_listed_in_full():
    model = build(model_cfg())
    state = dict(model.state_dict())
    del state['backbone.cls_token'], state['neck.projector.fc1.weight']
    state['strange.one'] = torch.zeros(1)
    state['backbone.ln1.bias'] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        load_state(model, state)
    text = str(error.value)
    for part in ('2 missing', 'backbone.cls_token',
                 'neck.projector.fc1.weight', '1 unexpected', 'strange.one',
                 '1 misshapen', 'backbone.ln1.bias: (7,)', '(48,)'):
        assert part in text, text
    with pytest.raises(CheckpointError, match='nothing in the checkpoint'):
        load_state(model, dict(other=torch.zeros(1)))


def test_positions_of_another_image_size_are_reported():
    small, large = build(model_cfg()), build(model_cfg(img_size=48))
    report = load_state(large, small.state_dict())
    assert 'backbone.pos_embed: 8x8 to 12x12' in report.resampled
    assert len(report.resampled) == 4  # both encoders and both decoders
    torch.testing.assert_close(
        large.backbone.pos_embed,
        resample_abs_pos_embed(small.backbone.pos_embed, [12, 12]))


class Bomb:

    def __reduce__(self):
        return (print, ('the file ran code', ))


def test_files_that_could_run_code_are_refused(tmp_path, capsys):
    path = tmp_path / 'bomb.pth'
    torch.save(dict(state_dict=dict(a=torch.zeros(1)), meta=Bomb()), path)
    with pytest.raises(CheckpointError, match='could run code.*weights_only'):
        read_checkpoint(str(path))
    assert 'ran code' not in capsys.readouterr().out


def test_files_without_a_checkpoint_raise(tmp_path):
    for name, content in (('text.pth', b'text'), ('empty.pth', b''),
                          ('list.pth', pickle.dumps([1])),
                          ('text.safetensors', b'text')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(str(tmp_path / name))
    with pytest.raises(CheckpointError, match='no checkpoint .*none.pth'):
        read_checkpoint(str(tmp_path / 'none.pth'))
    with pytest.raises(CheckpointError, match='.safetensors or .pth'):
        write_checkpoint(str(tmp_path / 'a.bin'), dict(a=torch.ones(1)), {})


def test_metadata_contains_the_origin(tmp_path):
    path = str(tmp_path / 'vit.safetensors')
    export_encoder(make_model(*ARCHS[0]), path, 'timm', 'target', epoch=12)
    meta = read_checkpoint(path).meta
    assert meta['source'] == 'cmae_mm' and meta['encoder'] == 'target'
    assert meta['epoch'] == '12' and meta['final_norm'] == 'False'


def test_bad_exports():
    mae = build(model_cfg(contrastive=False))
    for kwargs, named in ((dict(to='keras'), 'keras'),
                          (dict(encoder='target'), 'no target encoder'),
                          (dict(encoder='best'), "got 'best'")):
        with pytest.raises(CheckpointError, match=named):
            export_encoder(mae, 'x.safetensors', **kwargs)


def test_commands(tmp_path):
    """Export and import on the command line, and an error."""
    config = tmp_path / 'cfg.py'
    Config(dict(model=model_cfg())).dump(str(config))
    model = make_model(*ARCHS[0])
    torch.save(model.state_dict(), tmp_path / 'epoch_1.pth')
    torch.save({f'some.{i}': torch.ones(1) for i in range(3)},
               tmp_path / 'other.pth')
    results = run_commands(
        ['export', config, 'epoch_1.pth', 'official.safetensors', '--to',
         'cmae'],
        ['import', config, 'official.safetensors', 'back.pth'],
        ['export', config, 'back.pth', 'hf', '--to', 'hf'],
        ['export', config, 'back.pth', 'timm.pth', '--to', 'timm'],
        ['import', config, 'timm.pth', 'init.safetensors', '--json'],
        ['import', config, 'other.pth', 'x.pth'], cwd=tmp_path)
    assert [status for status, _ in results] == [0, 0, 0, 0, 0, 1], results
    assert 'is a released CMAE checkpoint' in results[1][1]
    back = read_checkpoint(str(tmp_path / 'back.pth')).state
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name
    loaded, image = cmae_mm.load_encoder(tmp_path / 'hf'), torch.randn(
        2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.tokens(image), model.backbone(image)[0], atol=1e-6,
            rtol=1e-6)
    assert json.loads(results[4][1].splitlines()[-1])['kind'] == (
        'an MAE or timm encoder')
    init = read_checkpoint(str(tmp_path / 'init.safetensors')).state
    assert torch.equal(init['backbone.cls_token'], model.backbone.cls_token)
    said = results[5][1]
    assert 'other.pth: no vision transformer was found in it' in said
    assert 'Traceback' not in said and not (tmp_path / 'x.pth').exists()


def test_a_runners_own_checkpoint_is_exported(image_root, tmp_path):
    """With optimizer state and log history in it, as training leaves it."""
    runner = Runner.from_cfg(runner_cfg(image_root, tmp_path))
    runner.train()
    Config(dict(model=model_cfg())).dump(str(tmp_path / 'cfg.py'))
    run_tool('cmae', 'export', tmp_path / 'cfg.py', tmp_path / 'iter_2.pth',
             tmp_path / 'vit.safetensors', '--to', 'timm')
    state, meta = read_checkpoint(str(tmp_path / 'vit.safetensors'))
    assert torch.equal(state['norm.weight'], runner.model.backbone.ln1.weight)
    assert meta['iter'] == '2' and meta['recipe'].endswith('cfg.py')


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o077, 0o600),
                                         (0o002, 0o664)])
def test_exports_follow_the_umask(umask, mode, tmp_path):
    model = make_model(*ARCHS[2])
    before = os.umask(umask)
    try:
        for path, to in (('a.safetensors', 'timm'), ('a.pth', 'mmpretrain'),
                         ('hf', 'hf')):
            export_encoder(model, str(tmp_path / path), to)
        export_cmae(model, str(tmp_path / 'cmae.safetensors'))
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(files) == 6
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {mode}


def test_failed_write_leaves_nothing(tmp_path):
    """Neither a part under its name nor a temporary file."""
    (tmp_path / 'a.pth').mkdir()
    with pytest.raises(CheckpointError, match='a.pth cannot be written'):
        write_checkpoint(tmp_path / 'a.pth', dict(a=torch.ones(1)), {})

    class Full(dict):
        def __reduce__(self):
            raise OSError(errno.ENOSPC, 'No space left on device')

    for old in (None, b'old'):
        if old:
            (tmp_path / 'b.pth').write_bytes(old)
        with pytest.raises(CheckpointError, match='b.pth cannot be written'):
            write_checkpoint(tmp_path / 'b.pth', dict(a=torch.ones(1)),
                             dict(b=Full()))
        left = sorted(p.name for p in tmp_path.iterdir())
        assert left == ['a.pth', 'b.pth'][:2 if old else 1]
    assert (tmp_path / 'b.pth').read_bytes() == b'old'


@pytest.mark.parametrize('to', ['mmpretrain', 'mmseg', 'timm', 'hf',
                                'hf_vitmae', 'convmae', 'cmae'])
def test_every_layout_is_read_back(to, tmp_path):
    """Export, import: every tensor is what it was."""
    if to == 'convmae':
        model = build(dict(
            type='CMAE',
            backbone=dict(type='CMAEConvViT', arch='mini', img_size=64),
            neck=dict(pixel_decoder=dict(
                decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)),
            head=dict(contrastive=None)))
    else:
        model = make_model(*ARCHS[0])
    path = str(tmp_path / ('hf' if 'hf' in to else 'a.safetensors'))
    if to == 'cmae':
        export_cmae(model, path)
    else:
        export_encoder(model, path, to)
    found = find_encoder(read_checkpoint(path).state).state
    expected = model.backbone.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize('cls, prefix, kind', [
    ('ViTModel', '', 'Hugging Face'),
    ('ViTForImageClassification', 'vit.', 'Hugging Face'),
    ('ViTMAEForPreTraining', 'vit.', 'Hugging Face')])
def test_encoders_of_hugging_face_give_their_features(cls, prefix, kind,
                                                      tmp_path):
    """A real one's weights, as transformers itself saves them."""
    config = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                  intermediate_size=96, image_size=32, patch_size=4,
                  hidden_dropout_prob=0., attention_probs_dropout_prob=0.,
                  layer_norm_eps=1e-6)
    config_class = 'ViTMAEConfig' if 'MAE' in cls else 'ViTConfig'
    if 'MAE' in cls:
        config.update(decoder_hidden_size=32, decoder_num_hidden_layers=1,
                      decoder_num_attention_heads=4, mask_ratio=0.)
    vit = getattr(transformers, cls)(
        getattr(transformers, config_class)(**config)).eval()
    with torch.no_grad():
        for value in vit.parameters():
            value.add_(torch.randn_like(value), alpha=0.02)
    # config.json has the number of heads; in one file and in several
    vit.save_pretrained(tmp_path / 'hf')
    vit.save_pretrained(tmp_path / 'shards', max_shard_size='60KB')
    assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 1
    (tmp_path / 'bin').mkdir()
    torch.save(vit.state_dict(), tmp_path / 'bin/pytorch_model.bin')
    (tmp_path / 'bin/config.json').write_bytes(
        (tmp_path / 'hf/config.json').read_bytes())
    image = torch.randn(2, 3, 32, 32)
    loaded = cmae_mm.load_encoder(tmp_path / 'hf')
    for other in ('hf/model.safetensors', 'shards', 'bin'):
        assert_same(cmae_mm.load_encoder(tmp_path / other).tokens(image),
                    loaded.tokens(image))
    base = getattr(vit, 'vit', vit)
    options = {}
    if 'MAE' in cls:
        options = dict(noise=torch.arange(64.).expand(2, -1))
    with torch.no_grad():
        assert_same(base(image, **options).last_hidden_state,
                    loaded.tokens(image))


def timm_vit(**options):
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=0, **options).eval()


@pytest.mark.parametrize('prefix', [
    '_orig_mod.', 'module.', '_orig_mod.module.', 'model.', 'encoder.',
    'backbone.', 'model.backbone.', 'model._orig_mod.', 'net.encoder.'])
def test_prefixes_of_wrappers_are_removed(prefix, tmp_path):
    """Of compiled and parallel modules, and of other frameworks."""
    vit, image = timm_vit(), torch.randn(2, 3, 32, 32)
    state = {prefix + k: v for k, v in vit.state_dict().items()}
    named = prefix.replace('module.', '').replace('_orig_mod.', '')
    if named:
        state['criterion.weight'] = torch.ones(2)
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    loaded = load_encoder(tmp_path / 'a.pth', num_heads=4)
    with torch.no_grad():
        assert_same(vit.forward_features(image), loaded.backbone(image)[0])
    said = ''.join(
        line for line in loaded.lines if line.startswith('removed from'))
    assert not named or f"'{named}'" in said
    assert ("'_orig_mod.'" in said) == ('_orig_mod.' in prefix)


def test_dinos_teacher_and_student(tmp_path):
    """A full checkpoint as DINO's and iBOT's code writes it."""
    teacher, student = timm_vit(), timm_vit()
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.01)
    head = {'head.mlp.0.weight': torch.ones(2, 2)}
    torch.save(dict(
        teacher={**{f'backbone.{k}': v for k, v in
                    teacher.state_dict().items()}, **head},
        student={f'module.{k}': v for k, v in {
            **{f'backbone.{k}': v for k, v in student.state_dict().items()},
            'backbone.masked_embed': torch.ones(1, 48), **head}.items()},
        optimizer=torch.optim.AdamW(student.parameters()).state_dict(),
        epoch=3, args=argparse.Namespace(arch='vit_tiny'), fp16_scaler=None,
        dino_loss=dict(center=torch.zeros(1, 8))), tmp_path / 'dino.pth')
    image = torch.randn(2, 3, 32, 32)
    for encoder, vit in (('online', teacher), ('teacher', teacher),
                         ('student', student)):
        loaded = load_encoder(tmp_path / 'dino.pth', encoder, num_heads=4)
        with torch.no_grad():
            assert_same(vit.forward_features(image),
                        loaded.backbone(image)[0])
        name = 'student' if encoder == 'student' else 'teacher'
        assert any(line.startswith(f"removed from its names: '{name}.")
                   for line in loaded.lines)
    torch.save(teacher.state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match='vit.pth: it has no student'):
        load_encoder(tmp_path / 'vit.pth', 'student')


def test_rotary_positions_are_refused_by_name(tmp_path):
    vit = timm.create_model('vit_small_patch16_dinov3')
    torch.save(vit.state_dict(), tmp_path / 'dinov3.pth')
    with pytest.raises(CheckpointError, match='rotary .DINOv3'):
        cmae_mm.load_encoder(tmp_path / 'dinov3.pth')


def test_damaged_index_raises_one_sentence(tmp_path):
    index = tmp_path / 'model.safetensors.index.json'
    for content, words in (('{', 'is damaged'), ('[]', 'is damaged'),
                           ('{}', 'lists no files'),
                           ('{"weight_map": {"a": "../../x"}}', 'no file of'),
                           ('{"weight_map": 3}', 'is damaged')):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=words) as error:
            read_checkpoint(tmp_path)
        assert str(tmp_path) in str(error.value)


def test_parts_of_a_model_and_other_files_are_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.read.print_log',
                        lambda text, **kwargs: said.append(text))
    vit = timm_vit().state_dict()
    torch.save(dict(model=vit, model_ema=vit), tmp_path / 'pytorch_model.bin')
    config = dict(architecture='vit', model_args=dict(num_heads=4),
                  num_hidden_layers=3)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='3 layers, but .* of 2'):
        load_encoder(tmp_path)
    assert said == ['not loaded: model_ema']
    names = {k: f'{k.split(".")[0]}.bin' for k in vit}
    for name in {*names.values()}:
        torch.save({k: v for k, v in vit.items() if names[k] == name},
                   tmp_path / name)
    (tmp_path / 'pytorch_model.bin').rename(tmp_path / 'all.bin')
    index = tmp_path / 'pytorch_model.bin.index.json'
    index.write_text(json.dumps(dict(weight_map=names)))
    assert read_checkpoint(tmp_path).state.keys() == vit.keys()
    index.write_text(json.dumps(dict(weight_map=dict(names, x='all.bin'))))
    with pytest.raises(CheckpointError, match='in two of its files'):
        read_checkpoint(tmp_path)
    index.unlink()
    adapters = {'base.layers.0.query.lora_A.weight': torch.ones(2, 2)}
    torch.save(adapters, tmp_path / 'lora.pth')
    with pytest.raises(CheckpointError, match='merge_and_unload'):
        load_encoder(tmp_path / 'lora.pth')
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_text('version https://git-lfs.github.com/x')
        with pytest.raises(CheckpointError, match='git lfs pull'):
            load_encoder(tmp_path / name)
