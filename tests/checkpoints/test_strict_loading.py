"""Runs load checkpoints that fit, and raise before loading others."""
import itertools
from pathlib import Path

import pytest
import timm
import torch
from helpers import CLASSIFIER, build, model_cfg, runner_cfg
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from cmae_mm.checkpoints import (CheckpointError, export_cmae, export_encoder,
                                 read_checkpoint)
from cmae_mm.engine import ResumableRunner


@pytest.fixture(scope='module')
def run(image_root, tmp_path_factory):
    """A finished run of two steps; its checkpoint and its model."""
    folder = tmp_path_factory.mktemp('run')
    runner = ResumableRunner.from_cfg(runner_cfg(image_root, folder))
    runner.train()
    return str(folder / 'iter_2.pth'), runner.model


@pytest.fixture
def runner_of(image_root, tmp_path):
    """Build runners that are about to train."""

    count = itertools.count()

    def make(model=None, **overrides) -> ResumableRunner:
        # Loggers go by this name, and write to the folder of the first.
        name = f'{tmp_path.name}_{next(count)}'
        runner = ResumableRunner.from_cfg(
            runner_cfg(image_root, tmp_path, model, experiment_name=name,
                       **overrides))
        assert runner.train_loop is not None  # builds it, as train() does
        return runner

    return make


@pytest.fixture
def start(runner_of):
    """Build a runner with load_from, up to its first step."""

    def make(checkpoint, model=None, **overrides) -> ResumableRunner:
        runner = runner_of(model, load_from=str(checkpoint), **overrides)
        runner.load_or_resume()
        return runner

    return make


@pytest.fixture
def tester(image_root, tmp_path):
    """Build a runner that tests a classifier."""

    def make(checkpoint, model=CLASSIFIER, **overrides) -> Runner:
        images = dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset',
                data_root=str(image_root),
                data_prefix='val',
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='Resize', scale=(32, 32)),
                    dict(type='PackInputs')
                ]))
        return ResumableRunner.from_cfg(
            Config(
                dict(
                    default_scope='mmpretrain',
                    work_dir=str(tmp_path),
                    model=model,
                    test_dataloader=images,
                    test_evaluator=dict(type='Accuracy', topk=(1, )),
                    test_cfg=dict(),
                    load_from=str(checkpoint),
                    **overrides)))

    return make


def log_of(runner) -> str:
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def assert_equal(module, state, prefix=''):
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[prefix + name]), name


def save(model, path) -> str:
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def test_the_whole_state_starts_a_new_run(run, start):
    checkpoint, model = run
    runner = start(checkpoint)
    assert_equal(runner.model, model.state_dict())
    assert runner.iter == 0


@pytest.mark.parametrize('sizes, said', [
    (dict(width=64), 'its encoder is 48 wide and 2 layers deep with patches of'
     ' 4 pixels, the model\'s 64 wide and 2 layers deep'),
    (dict(depth=3), "model's 48 wide and 3 layers deep")])
def test_another_width_or_depth_is_refused(run, runner_of, start, sizes, said):
    """By load_from, by resuming and by init_cfg, with the keys."""
    checkpoint, _ = run
    other = model_cfg(**sizes)
    runner = runner_of(other)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        runner.resume(checkpoint)
    first, *keys = str(error.value).split('\n')
    assert said in first and checkpoint in first and 'resumed with' in first
    assert any('backbone' in key or 'head' in key for key in keys)
    assert len(keys) <= 1 + 4 * 12
    assert_equal(runner.model, before)
    with pytest.raises(CheckpointError, match='load_partial=True'):
        start(checkpoint, other)
    other.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match='width, depth and patch size'):
        MODELS.build(other).init_weights()


def test_resuming_at_another_image_size_is_refused(run, runner_of):
    """Positions could be resampled, the optimizer's state could not."""
    with pytest.raises(CheckpointError, match='another image size'):
        runner_of(model_cfg(img_size=48)).resume(run[0])


def test_load_from_resamples_positions(run, start):
    runner = start(run[0], model_cfg(img_size=48))
    assert 'backbone.pos_embed: 8x8 to 12x12' in log_of(runner)


def test_pretraining_starts_from_an_encoder_by_init_cfg(run):
    """With its prefix or without, as transfer takes it; the target follows."""
    checkpoint, model = run
    for more in ({}, dict(prefix='backbone.')):
        cfg = model_cfg()
        cfg.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=checkpoint, **more)
        built = build(cfg)
        assert_equal(built.backbone, model.backbone.state_dict())
        assert torch.equal(built.target.encoder.cls_token,
                           model.backbone.cls_token)
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint='random')
    assert build(cfg).backbone.cls_token.std() > 0


def test_a_cmae_starts_from_an_mae(start, tmp_path):
    """Encoder and pixel decoder; the target becomes the online branch."""
    mae = build(model_cfg(contrastive=False))
    runner = start(save(mae, tmp_path / 'mae.pth'))
    model = runner.model
    assert_equal(model.backbone, mae.backbone.state_dict())
    assert_equal(model.neck.pixel_decoder,
                 mae.neck.pixel_decoder.state_dict())
    assert torch.equal(model.target.encoder.layers[0].ln1.weight,
                       mae.backbone.layers[0].ln1.weight)
    assert torch.equal(model.target.encoder.patch_embed.projection.weight,
                       mae.backbone.patch_embed.projection.weight)
    assert torch.equal(model.target.projector.fc0.weight,
                       model.neck.projector.fc0.weight)
    text = log_of(runner)
    assert 'the target starts as a copy of the loaded online branch' in text
    assert 'new, not from it: head, neck.feature_decoder, neck.projector, ' \
        'target' in text


def test_a_cmae_starts_from_encoders_of_all_kinds(start, tmp_path):
    source = build(model_cfg())
    with torch.no_grad():
        source.target.encoder.cls_token.add_(1)
    for to in ('mmpretrain', 'timm'):
        path = tmp_path / f'{to}.pth'
        export_encoder(source, str(path), to)
        model = start(path).model
        assert_equal(model.backbone, source.backbone.state_dict())
        assert torch.equal(model.target.encoder.cls_token,
                           source.backbone.cls_token)
    # as FAIR publishes MAE, with its decoder
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=0)
    fair = dict(vit.state_dict(), mask_token=torch.zeros(1, 1, 32))
    torch.save(dict(model=fair), tmp_path / 'fair.pth')
    model = start(tmp_path / 'fair.pth').model
    assert torch.equal(model.backbone.cls_token, vit.cls_token)
    # the released code's file is a whole CMAE, target and all
    export_cmae(source, str(tmp_path / 'released.pth'))
    model = start(tmp_path / 'released.pth').model
    assert torch.equal(model.target.encoder.cls_token,
                       source.target.encoder.cls_token)
    assert_equal(model.head, source.head.state_dict())


def test_pieces_of_a_part_are_refused(start, tmp_path):
    """A part of a CMAE is there in whole or not at all."""
    state = build(model_cfg()).state_dict()
    del state['neck.projector.fc0.weight']
    torch.save(dict(state_dict=state), tmp_path / 'pieces.pth')
    with pytest.raises(CheckpointError, match='neck.projector.fc0.weight'):
        start(tmp_path / 'pieces.pth')


def test_weights_without_training_state_cannot_be_resumed(
        run, runner_of, tmp_path):
    for name in ('weights.pth', 'weights.safetensors'):
        export_encoder(run[1], str(tmp_path / name))
        with pytest.raises(CheckpointError) as error:
            runner_of().resume(str(tmp_path / name))
        text = str(error.value)
        assert 'no training state' in text and 'use load_from' in text
        assert '\n' not in text and name in text
    with pytest.raises(CheckpointError, match='there is no checkpoint'):
        runner_of().resume(str(tmp_path / 'none.pth'))


def test_a_random_head_is_never_tested(run, tester, tmp_path):
    with pytest.raises(CheckpointError) as error:
        tester(run[0]).test()
    assert 'head.fc.weight' in str(error.value)
    assert 'use the config' in str(error.value)
    # nor is there a setting that allows it
    with pytest.raises(CheckpointError, match='head.fc.weight'):
        tester(run[0], load_partial=True).test()
    classifier = build(Config(dict(model=CLASSIFIER)).model)
    path = save(classifier, tmp_path / 'classifier.pth')
    assert 'accuracy/top1' in tester(path).test()


def test_a_classifier_starts_from_a_classifier(run, start, tmp_path):
    other = Config(dict(model=CLASSIFIER)).model
    classifier = build(other)
    path = save(classifier, tmp_path / 'classifier.pth')
    hooks = dict(custom_hooks=[])
    assert_equal(start(path, other, **hooks).model, classifier.state_dict())
    other.head.num_classes = 3
    with pytest.raises(CheckpointError, match='load_partial=True') as error:
        start(path, other, **hooks)
    assert 'head.fc.weight: (2, 48) in the checkpoint' in str(error.value)
    runner = start(path, other, load_partial=True, **hooks)
    assert_equal(runner.model.backbone, classifier.backbone.state_dict())
    assert 'head.fc.weight: (2, 48)' in log_of(runner)
    with pytest.raises(CheckpointError, match='init_cfg'):
        start(run[0], other, **hooks)


def test_averaged_weights_are_resumed(runner_of):
    """EMAHook takes the state apart while it is loaded."""
    hooks = [dict(type='TargetUpdateHook'),
             dict(type='EMAHook', momentum=0.5)]

    def average(runner):
        return next(h for h in runner.hooks
                    if isinstance(h, EMAHook)).ema_model.module

    first = runner_of(custom_hooks=hooks)
    first.train()
    checkpoint = f'{first.work_dir}/iter_2.pth'
    name = 'head.contrastive.predictor.fc0.weight'
    assert not torch.equal(average(first).state_dict()[name],
                           first.model.state_dict()[name])
    # train() attaches the average before it loads
    second = runner_of(custom_hooks=hooks)
    second.call_hook('before_run')
    second.resume(checkpoint)
    for ours, theirs in ((first.model, second.model),
                         (average(first), average(second))):
        assert_equal(theirs, ours.state_dict())
    # the file itself holds the average, ready for use
    assert torch.equal(
        read_checkpoint(checkpoint).state[name],
        average(first).state_dict()[name])
    with pytest.raises(CheckpointError, match='averages of an EMAHook, which'):
        runner_of(custom_hooks=hooks[:1]).resume(checkpoint)


@pytest.mark.parametrize('change, words', [
    (lambda t: t.fill_(float('nan')), 'not finite'),
    (lambda t: t.long(), 'of torch.int64'),
    (lambda t: t.to(torch.complex64), 'of torch.complex64')])
def test_no_run_starts_with_missing_weights(
        run, start, runner_of, change, words, tmp_path):
    content = torch.load(run[0], weights_only=False)
    name = 'neck.pixel_decoder.decoder_pred.weight'
    content['state_dict'][name] = change(content['state_dict'][name])
    torch.save(content, tmp_path / 'spoilt.pth')
    for begin in (lambda: start(tmp_path / 'spoilt.pth'),
                  lambda: runner_of().resume(str(tmp_path / 'spoilt.pth'))):
        with pytest.raises(CheckpointError) as error:
            begin()
        said = str(error.value)
        assert 'spoilt.pth' in said and words in said and name in said
