"""Invalid settings raise one sentence; unusual ones work."""
import logging
import textwrap

import pytest
import torch
from helpers import (HALF, build, model_cfg, needs_torch, runner_cfg,
                     write_images)
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from cmae_mm.engine import ResumableRunner, TargetUpdateHook
from cmae_mm.models import CMAE, MomentumTarget, TwoViewDataPreprocessor
from cmae_mm.visualization import reconstruct

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.mark.parametrize('channels', [1, 4])
def test_images_of_any_channels_are_learnt_and_reconstructed(channels):
    model = build(model_cfg(**{'backbone.in_channels': channels}))
    views = torch.randn(2, 4, channels, 32, 32)
    losses = model.loss(list(views))
    (losses['loss_rc'] + losses['loss_ct']).backward()
    assert all(p.grad is not None for n, p in model.named_parameters()
               if p.requires_grad and not n.startswith('target.'))
    made = reconstruct(model, views[0])
    assert made['reconstruction'].shape == (4, channels, 32, 32)
    # what is visible stays as it was, each channel in its place
    visible = (made['masked'] != 0)
    assert torch.equal(made['reconstruction'][visible], views[0][visible])


def test_the_reconstruction_can_be_weighted_down_to_nothing():
    """With 0, the contrast alone moves the encoder."""
    views = list(torch.randn(2, 4, 3, 32, 32))
    found = []
    for weight in (1., 0.5, 0.):
        torch.manual_seed(0)
        model = build(model_cfg(**{
            'head.reconstruction': dict(loss_weight=weight)}))
        losses = model.loss(views)
        (losses['loss_rc'] + losses['loss_ct']).backward()
        found.append(losses['loss_rc'].item())
        gradient = model.neck.pixel_decoder.decoder_pred.weight.grad
        assert bool(gradient.any()) == (weight > 0)
        assert model.backbone.layers[0].attn.qkv.weight.grad.any()
    assert found[0] == 2 * found[1] > 0 == found[2]
    with pytest.raises(ValueError, match='must be 0 or more, but got -1'):
        MODELS.build(model_cfg(**{
            'head.reconstruction': dict(loss_weight=-1)}))


@pytest.mark.parametrize('changes, named', [
    ({'neck.embed_dims': 999}, 'neck.embed_dims=999 .* embed_dims=48'),
    ({'neck.in_channels': 1}, 'neck.in_channels=1 .* in_channels=3'),
    ({'neck.projector.in_channels': 7}, 'neck.projector.in_channels=7'),
    ({'neck.pixel_decoder.patch_size': 7}, 'neck.pixel_decoder.patch_size=7'),
    ({'head.patch_size': 7}, 'head.patch_size=7 .* patch_size=4'),
    ({'head.reconstruction': dict(in_channels=1)},
     'head.reconstruction.in_channels=1'),
    ({'head.contrastive.predictor.out_channels': 5},
     'head.contrastive.predictor.out_channels=5'),
    ({'neck.projector': None}, 'neck.projector=None .* head.contrastive'),
    ({'neck.num_extra_tokens': 0}, 'neck.num_extra_tokens=0'),
    ({'neck.num_patches': 49}, 'neck.num_patches=49 .* num_patches=64'),
    ({'head.contrastive.predictor.in_channels': 5},
     'head.contrastive.predictor.in_channels=5'),
    ({'backbone.out_type': 'avg_featmap'}, "backbone.out_type='avg_featmap'"),
    ({'backbone.arch.num_heads': 5}, 'backbone.arch.num_heads=5 .* 48'),
    ({'backbone.arch.embed_dims': 46, 'backbone.arch.num_heads': 2},
     'width 46, or the width is not a multiple of 4'),
    ({'neck.feature_decoder.decoder_num_heads': 3},
     'neck.feature_decoder.decoder_num_heads=3 .* 32'),
])
def test_settings_that_contradict_the_encoder_raise(changes, named):
    with pytest.raises(ValueError, match=named):
        MODELS.build(model_cfg(**changes))


def test_a_projector_of_another_kind_has_defaults_of_its_own():
    cfg = model_cfg()
    cfg.neck.projector = dict(type='LinearNeck')
    with pytest.raises(ValueError, match='neck.projector is a LinearNeck.* '
                       'set neck.projector.out_channels'):
        MODELS.build(cfg)
    cfg.neck.projector.out_channels = 20
    model = build(cfg)
    assert model.neck.projector.fc.in_features == 48
    assert model.head.contrastive.predictor.fc0.in_features == 20
    losses = model.loss([torch.randn(4, 3, 32, 32)] * 2)
    assert losses['loss_ct'].isfinite()


def test_one_switch_makes_an_mae_whatever_else_is_set():
    projector = dict(hid_channels=24, out_channels=16)
    cfg = model_cfg(contrastive=False, **{'neck.projector': projector})
    cfg.target = dict(momentum=0.9)
    model = build(cfg)
    assert model.target is None and model.neck.projector is None
    assert model.neck.feature_decoder is None
    assert not any('target' in k or 'projector' in k or 'feature' in k
                   for k in model.state_dict())


def test_views_of_another_size_than_the_models():
    model = build(model_cfg(**{'backbone.img_size': 64}))
    with pytest.raises(ValueError, match=r'64x64 pixels, but got \(2, 3, 32'):
        model.loss([torch.randn(2, 3, 32, 32)] * 2)
    with pytest.raises(ValueError, match='3 channels .* got'):
        model.loss([torch.randn(2, 1, 64, 64)] * 2)


@pytest.mark.parametrize('kwargs, named', [
    (dict(mean=MEAN), 'std must be a list of .* per channel, but got None'),
    (dict(std=STD), 'mean must be a list of .* per channel, but got None'),
    (dict(mean=[127.], std=STD), 'mean has 1 numbers and std 3'),
    (dict(mean=[1.] * 65, std=[1.] * 65), 'list of 1 to 64'),
    (dict(mean=[1.] * 4, std=[1., 1., 0., 1.]), 'std must be above 0'),
    (dict(mean=[1.], std=[1.], to_rgb=True), '1 channel.*set to_rgb=False'),
    pytest.param(
        dict(mean=MEAN, std=STD, to_rgb=True, dtype='uint16'),
        '3 channel.* in uint16.*set to_rgb=False',
        marks=needs_torch(2, 3, 'uint16')),
    (dict(mean=MEAN, std=STD, dtype='int8'), "dtype must be .* got 'int8'"),
    (dict(mean=MEAN, std=STD, dtype='float32'), 'value_range must be given'),
    (dict(mean=MEAN, std=STD, value_range=(0, [1, 1])), 'number or 3'),
    (dict(mean=MEAN, std=STD, value_range=(0, [255, 255, 0])),
     'black, below white'),
    (dict(mean=[1.], std=[1.], colour=True), 'red, green and blue'),
])
def test_the_preprocessor_needs_the_channels(kwargs, named):
    with pytest.raises(ValueError, match=named):
        TwoViewDataPreprocessor(32, **kwargs)


@pytest.mark.parametrize('inputs, named', [
    (torch.zeros(2, 1, 64, 64, dtype=torch.uint8), 'got images of 1'),
    (torch.zeros(2, 4, 64, 64, dtype=torch.uint8), 'got images of 4'),
    (torch.zeros(2, 3, 64, 64), "dtype='uint8', but .* torch.float32"),
    ([torch.zeros(2, 3, 32, 32)] * 2, 'a list of 2; remove PixelShift'),
])
def test_canvases_that_cannot_be_cut_are_named(inputs, named):
    module = TwoViewDataPreprocessor(32, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=named):
        module(dict(inputs=inputs), training=True)


@pytest.mark.parametrize('dtype', HALF)
def test_views_are_bitwise_those_without_autocast(dtype):
    canvas = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8)
    plain, cast = (TwoViewDataPreprocessor(
        32, max_shift=8, mean=MEAN, std=STD, blur_prob=1.) for _ in range(2))
    torch.manual_seed(1)
    expected = plain(dict(inputs=canvas), training=True)['inputs']
    torch.manual_seed(1)
    with torch.autocast('cpu', dtype=dtype):
        made = cast(dict(inputs=canvas), training=True)['inputs']
    for view, other in zip(made, expected):
        assert view.dtype == torch.float32 and torch.equal(view, other)


def test_mae_has_only_the_online_view():
    canvas = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    both, one = (TwoViewDataPreprocessor(
        32, max_shift=8, mean=MEAN, std=STD, target_view=target_view)(
            dict(inputs=canvas), training=True)['inputs']
        for target_view in (True, False))
    assert len(one) == 1 and torch.equal(one[0], both[0])
    model = build(model_cfg(contrastive=False))
    assert model.loss(one)['loss_rc'].isfinite()


def _gradients(image_root, work_dir, **overrides):
    """Train one step; give the gradients that the optimizer saw."""
    seen = {}

    class Watch(ResumableRunner):

        def build_optim_wrapper(self, optim_wrapper):
            wrapper = super().build_optim_wrapper(optim_wrapper)

            def keep(*args):
                seen.update({
                    n: None if p.grad is None else p.grad.clone()
                    for n, p in self.model.named_parameters()
                    if p.requires_grad and not n.startswith('target.')})

            wrapper.optimizer.register_step_pre_hook(keep)
            return wrapper

    cfg = runner_cfg(image_root, work_dir, **{'train_cfg.max_iters': 1})
    cfg.merge_from_dict(overrides)
    Watch.from_cfg(cfg).train()
    return seen


def test_activation_checkpointing_gives_the_same_gradients(image_root,
                                                           tmp_path):
    expected = _gradients(image_root, tmp_path / 'plain')
    made = _gradients(image_root, tmp_path / 'checkpointed',
                      activation_checkpointing=['backbone'])
    assert made.keys() == expected.keys() and len(made) > 50
    for name, value in expected.items():
        assert made[name] is not None, name
        torch.testing.assert_close(made[name], value)
    with pytest.raises(ValueError, match="'encoder', which CMAE does not"):
        _gradients(image_root, tmp_path / 'misspelt',
                   activation_checkpointing=['encoder'])


def test_mmengines_reentrant_checkpointing_is_refused(image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path)
    cfg.activation_checkpointing = ['backbone']
    with pytest.raises(RuntimeError, match='no gradient reaches the encoder'):
        Runner.from_cfg(cfg).train()


def test_scaled_rates_count_accumulation(image_root, tmp_path, caplog):
    cfg = runner_cfg(image_root, tmp_path)
    cfg.auto_scale_lr = dict(base_batch_size=128, enable=True)
    cfg.optim_wrapper.accumulative_counts = 8
    runner = ResumableRunner.from_cfg(cfg)
    runner.logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        runner.train()
    # 4 images, 8 batches a step, for 128
    for group in runner.optim_wrapper.optimizer.param_groups:
        assert group['lr'] == pytest.approx(
            cfg.optim_wrapper.optimizer.lr / 4)
    said = [r.message for r in caplog.records if 'multiplied' in r.message]
    text, = said
    assert '0.25' in text and 'x 8 accumulated' in text


@pytest.mark.parametrize('changes, named', [
    ({'train_dataloader.batch_size': 1}, 'a batch of a process has a single'),
    ({'train_dataloader.batch_size': 1,
      'model.head.contrastive.loss_style': 'byol'},
     'a single image, but BatchNorm'),
    ({'custom_hooks': [dict(type='PretrainCheckHook')]},
     'nothing updates the target'),
    ({'custom_hooks': []}, 'nothing updates the target'),
    ({'train_dataloader.batch_size': 200,
      'train_dataloader.sampler.type': 'DefaultSampler',
      'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop',
                        max_epochs=3),
      'param_scheduler': [dict(type='LinearLR', by_epoch=True, begin=0, end=2,
                               start_factor=0.1, convert_to_iter_based=True)]},
     '24 images, fewer than one batch of 200 on 1 .* lower train_data'),
    ({'train_dataloader.batch_size': 23,
      'train_dataloader.drop_last': False,
      'train_dataloader.sampler.type': 'DefaultSampler',
      'model.head.contrastive.loss_style': 'byol'},
     'the last batch of an epoch .* has a single .*drop_last=True'),
])
def test_runs_that_cannot_train_end_before_the_first_step(
        changes, named, image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path, **changes)
    runner = ResumableRunner.from_cfg(cfg)
    with pytest.raises(ValueError, match=named):
        runner.train()
    assert 'loss' not in str(runner.message_hub.log_scalars.keys())


@pytest.mark.parametrize('hooks', [
    ['PretrainCheckHook'], ['PretrainCheckHook', 'TargetUpdateHook']])
def test_fixed_target(hooks, image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path, **{
        'custom_hooks': [dict(type=name) for name in hooks],
        'model.target.fixed': True})
    runner = ResumableRunner.from_cfg(cfg)
    runner.train()
    model = runner.model
    assert runner.iter == 2 and model.target.steps == 0
    with pytest.raises(ValueError, match='fixed=True cannot follow'):
        model.target.follow(runner.optim_wrapper.optimizer, model.backbone,
                            model.neck.projector)


def test_one_switch_makes_an_mae_of_a_run(image_root, tmp_path):
    cfg = runner_cfg(image_root, tmp_path)
    cfg.model.head.contrastive = None
    assert 'TargetUpdateHook' in [hook.type for hook in cfg.custom_hooks]
    runner = ResumableRunner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2 and runner.model.target is None


def test_only_a_resumed_run_continues_the_cosine(image_root, tmp_path):
    """mu at each step of a run, one loaded from it, and one resumed."""
    momenta = []

    class Watched(TargetUpdateHook):

        def _momentum_at(self, start, step, num_steps):
            momentum = super()._momentum_at(start, step, num_steps)
            momenta.append(round(momentum, 6))
            return momentum

    def run(folder, iters, **overrides):
        momenta.clear()
        cfg = runner_cfg(image_root, tmp_path / folder, **{
            'train_cfg.max_iters': iters, 'custom_hooks': [],
            'default_hooks.checkpoint.interval': 2, **overrides})
        runner = ResumableRunner.from_cfg(cfg)
        runner.register_hook(Watched(momentum=0.9, end_momentum=1.))
        runner.train()
        return list(momenta), int(runner.model.target.steps)

    first, steps = run('first', 4)
    assert first == [0.9, 0.925, 0.975, 1.] and steps == 4
    checkpoint = str(tmp_path / 'first/iter_4.pth')
    assert run('new', 4, load_from=checkpoint) == (first, 4)
    resumed = run('first', 6, resume=True)
    whole, _ = run('whole', 6)
    assert resumed == (whole[4:], 6)


def test_a_new_style_config_of_another_project(tmp_path):
    """Classes for strings, and no default scope: outside of this project."""
    project = tmp_path / 'project'
    (project / 'configs').mkdir(parents=True)
    write_images(project / 'data', 6, size=64)
    (project / 'configs/base.py').write_text(textwrap.dedent("""
        from cmae_mm.models import CMAE, CMAEViT, TwoViewDataPreprocessor

        decoder = dict(
            decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
        model = dict(
            type=CMAE,
            data_preprocessor=dict(
                type=TwoViewDataPreprocessor, size=32, max_shift=4,
                mean=[124., 116., 104.], std=[58., 57., 57.], to_rgb=True),
            backbone=dict(
                type=CMAEViT, img_size=32, patch_size=4,
                arch=dict(embed_dims=48, num_layers=1, num_heads=4,
                          feedforward_channels=96)),
            neck=dict(pixel_decoder=decoder, feature_decoder=decoder),
            head=dict(contrastive=dict()))
        """))
    (project / 'configs/tiny.py').write_text(textwrap.dedent(f"""
        from mmengine.config import read_base
        with read_base():
            from .base import *

        from mmengine.dataset import default_collate
        from mmengine.runner import IterBasedTrainLoop
        from mmpretrain.datasets import PackInputs
        from torch.optim import AdamW
        from cmae_mm.datasets import (LoadCanvas, PretrainingDataset,
                                      SeededInfiniteSampler)
        from cmae_mm.engine import (AutoAmpOptimWrapper,
                                    GroupedOptimWrapperConstructor,
                                    PretrainCheckHook, TargetUpdateHook)

        train_dataloader = dict(
            batch_size=4, num_workers=0,
            sampler=dict(type=SeededInfiniteSampler),
            collate_fn=dict(type=default_collate),
            dataset=dict(
                type=PretrainingDataset, data_root={str(project / 'data')!r},
                pipeline=[
                    dict(type=LoadCanvas, size=36),
                    dict(type=PackInputs,
                         meta_keys=('img_path', 'view_seed'))]))
        train_cfg = dict(type=IterBasedTrainLoop, max_iters=1)
        optim_wrapper = dict(
            type=AutoAmpOptimWrapper,
            constructor=GroupedOptimWrapperConstructor,
            optimizer=dict(type=AdamW, lr=1e-3))
        custom_hooks = [
            dict(type=PretrainCheckHook), dict(type=TargetUpdateHook)]
        work_dir = {str(tmp_path / 'work')!r}
        """))
    cfg = Config.fromfile(project / 'configs/tiny.py')
    assert 'default_scope' not in cfg
    with DefaultScope.overwrite_default_scope('mmengine'):
        runner = Runner.from_cfg(cfg)
        runner.train()
    assert isinstance(runner.model, CMAE)
    assert isinstance(runner.model.target, MomentumTarget)
    assert runner.model.target.steps == 1
