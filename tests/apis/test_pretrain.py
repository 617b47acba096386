"""Pre-training on a folder of images, from Python."""
import json
import math
import os
import shutil

import pytest
import torch
from helpers import write_images
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR
from tiny_training import on_ranks

import cmae_mm
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.pretraining import MODELS, choose_by_size, plan_pretraining
from cmae_mm.cli.main import build_parser, run_command
from cmae_mm.config import ConfigError
from cmae_mm.engine.device import count_processes


def weights(path) -> dict:
    return torch.load(path, weights_only=False)['state_dict']


def test_folder_of_images_suffices(pretrained, photos):
    assert pretrained.checkpoint.name == 'epoch_2.pth'
    assert all(torch.isfinite(v).all()
               for v in weights(pretrained.checkpoint).values()
               if v.is_floating_point())
    cfg = Config.fromfile(str(pretrained.config))
    assert cfg.train_dataloader.dataset.data_root == str(photos)
    log = next(pretrained.out.glob('*/vis_data/scalars.json')).read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    lines = [line for line in lines if 'loss' in line]
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    # 2e-3 for a batch of 128 is scaled to one of 4; no warm-up in 4 steps
    assert lines[0]['lr'] == pytest.approx(2e-3 * math.sqrt(4 / 128))
    assert lines[-1]['lr'] < lines[0]['lr'] / 2


def test_the_written_config_gives_the_same_run(pretrained, tmp_path):
    args = build_parser().parse_args(
        ['train', str(pretrained.config), '--work-dir', str(tmp_path)])
    run_command(args)
    again = weights(tmp_path / 'epoch_2.pth')
    for name, value in weights(pretrained.checkpoint).items():
        assert torch.equal(value, again[name]), name


def test_same_call_resumes_and_other_settings_raise(
        pretrained, photos, smaller, tmp_path):
    shutil.copytree(pretrained.out, tmp_path / 'mine')
    options = dict(batch_size=4, num_workers=0, out=tmp_path / 'mine')
    same = cmae_mm.pretrain(photos, 'mini', epochs=2, cfg_options=smaller,
                            **options)
    assert same.checkpoint.name == 'epoch_2.pth'
    assert not list((tmp_path / 'mine').glob('previous_*'))
    with pytest.raises(ArgumentError,
                       match=r'other settings \(epochs 2 -> 3'):
        cmae_mm.pretrain(photos, 'mini', epochs=3, cfg_options=smaller,
                         **options)
    anew = cmae_mm.pretrain(photos, 'mini', epochs=1, cfg_options=smaller,
                            resume=False, **options)
    assert anew.checkpoint.name == 'epoch_1.pth'
    assert (tmp_path / 'mine/previous_1/epoch_2.pth').is_file()


@pytest.mark.parametrize('model', MODELS)
def test_every_model_gives_a_config_of_the_recipe(model, photos, tmp_path):
    cfg, summary, facts = plan_pretraining(
        photos, model, epochs=150, batch_size=2, out=tmp_path / 'out',
        recipe='paper', processes=2)
    assert facts['steps_per_epoch'] == 2
    assert facts['warm_up_epochs'] == 20
    linear, cosine = cfg.param_scheduler
    assert (linear['end'], cosine['begin'], cosine['end']) == (20, 20, 150)
    assert cfg.auto_scale_lr.enable
    base = 128 if model == 'mini' else 4096
    assert facts['learning_rate'] == pytest.approx(
        cfg.optim_wrapper.optimizer.lr * 4 / base)
    assert f'{facts["learning_rate"]:.4g}' in summary
    # saved ten times, since 500 steps are more than the whole
    assert cfg.default_hooks.checkpoint.interval == 15
    path = tmp_path / 'config.py'
    path.write_text(cfg.pretty_text)
    assert Config.fromfile(str(path)).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('epochs, warm_up', [
    (1, 0), (4, .533), (8, 1), (100, 13), (300, 40), (1600, 40)])
def test_warm_up_keeps_its_share_of_the_epochs(epochs, warm_up, photos):
    cfg, _, facts = plan_pretraining(
        photos, 'vit-s', epochs=epochs, batch_size=2)
    assert facts['warm_up_epochs'] == warm_up
    steps = facts['steps_per_epoch']
    cosine = CosineAnnealingLR.build_iter_from_epoch(
        torch.optim.SGD([torch.zeros(1)], lr=1), epoch_length=steps,
        **{k: v for k, v in cfg.param_scheduler[-1].items()
           if k not in ('type', 'convert_to_iter_based')})
    assert cosine.begin + cosine.T_max == epochs * steps


def test_defaults_fit_the_images_and_the_machine(photos, tmp_path):
    facts = plan_pretraining(photos, 'mini', recipe='paper').values
    # 4 steps of 2 images; as many epochs as make 300 steps
    assert (facts['batch_size'], facts['steps_per_epoch']) == (2, 4)
    assert facts['epochs'] == 75
    # ... or 5,000
    assert plan_pretraining(photos, 'mini').values['epochs'] == 1250
    assert facts['out'] == 'work_dirs/mini_photos'
    write_images(tmp_path / 'train/class', 20, size=16)
    write_images(tmp_path / 'val/class', 4, size=16)
    facts = plan_pretraining(tmp_path, recipe='paper').values
    assert (facts['images'], facts['batch_size']) == (20, 4)
    assert (facts['epochs'], facts['warm_up_epochs']) == (300, 40)


@pytest.mark.parametrize('images, recipe, batch_size', [
    (10, 'small', 64), (1_000, 'small', 64), (5_000, 'small', 64),
    (12_800, 'small', 128), (25_000, 'small', 128), (25_600, 'small', 256),
    (99_999, 'small', 256), (100_000, 'paper', None),
    (1_281_167, 'paper', None)])
def test_the_number_of_images_chooses_the_recipe(images, recipe, batch_size):
    rule = choose_by_size(images)
    assert (rule.name, rule.batch_size) == (recipe, batch_size)
    for name in ('paper', 'small'):
        assert choose_by_size(images, name).name == name


def test_the_recipe_for_few_images(photos):
    cfg, summary, facts = plan_pretraining(
        photos, 'vit-s', batch_size=2, processes=2)
    rate = 2.4e-3 * math.sqrt(4 / 4096)
    assert facts['recipe'] == 'small'
    assert facts['learning_rate'] == pytest.approx(rate)
    # `cmae train` scales from here to other numbers of processes.
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=4)
    assert facts['epochs'] == 2500  # 5,000 steps
    assert ('recipe         small: fewer than 100,000 images; the target '
            'encodes 50% of the patches') in summary
    assert '0.0024 for a batch of 4096 scaled to 4 by the square' in summary
    assert cfg.model.target.mask_ratio == 0.5
    for model in MODELS:
        cfg, summary, _ = plan_pretraining(photos, model, recipe='paper')
        assert not cfg.model.target.get('mask_ratio'), model
        assert 'the target encodes' not in summary
        cfg = plan_pretraining(
            photos, model, cfg_options={'model.target.mask_ratio': 0.3}).cfg
        assert cfg.model.target.mask_ratio == 0.3, model


def test_the_batch_for_few_images_is_that_of_all_processes(tmp_path):
    write_images(tmp_path, 1, size=16)
    first, = tmp_path.iterdir()
    for number in range(600):
        os.link(first, tmp_path / f'{number}{first.suffix}')
    for processes, batch_size in ((1, 64), (8, 8), (64, 2)):
        facts = plan_pretraining(tmp_path, 'mini', processes=processes).values
        assert facts['batch_size'] == batch_size
        assert facts['learning_rate'] == pytest.approx(
            2e-3 * math.sqrt(batch_size * processes / 128))


def test_given_learning_rate_is_not_scaled(photos):
    cfg, summary, facts = plan_pretraining(
        photos, 'mini', cfg_options={'optim_wrapper.optimizer.lr': 1e-3})
    assert not cfg.auto_scale_lr.enable
    assert facts['learning_rate'] == 1e-3
    assert 'scaled' not in summary


def test_processes_are_counted_from_launcher_variables(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert [count_processes(x) for x in ('none', 'pytorch')] == [1, 4]


def test_ranks_share_the_images_and_one_writes_the_config(
        photos, smaller, tmp_path):
    def rank(number):
        os.environ['WORLD_SIZE'] = '2'
        done = cmae_mm.pretrain(
            photos, 'mini', epochs=2, batch_size=2, num_workers=0,
            out=tmp_path / 'out', cfg_options=smaller, launcher='pytorch')
        assert done.checkpoint.name == 'epoch_2.pth'

    assert on_ranks(rank, tmp_path) == [0, 0]
    saved = torch.load(tmp_path / 'out/epoch_2.pth', weights_only=False)
    assert saved['meta']['world_size'] == 2
    assert saved['meta']['iter'] == 4
    text = (tmp_path / 'out/config.py').read_text()
    assert '# batch          2 on 2 process(es): 2 steps an epoch' in text
    # synchronised where there are GPUs, whatever this machine has
    assert Config.fromfile(str(tmp_path / 'out/config.py')).sync_bn == 'torch'


MISTAKES = {
    'an unknown model': (
        dict(model='vit_b'), "one of vit-s, .*; did you mean 'vit-b'"),
    'no epochs': (dict(epochs=0), 'epochs must be .* 1 or more.*got 0'),
    'one image a batch': (dict(batch_size=1), 'batch_size must be .* 2 or'),
    'a text as a number': (dict(num_workers='2'), "num_workers .*got '2'"),
    'no such folder': (dict(data='none'), "data folder 'none' does not exist"),
    'a batch larger than the data': (
        dict(batch_size=16), '8 images, fewer than one batch of 16.*choose a '
        'batch size of 8 or less'),
    'epochs in a nested override': (
        dict(cfg_options={'train_cfg': {'max_epochs': 3}}),
        'max_epochs cannot be set in cfg_options; use the argument epochs'),
    'epochs as an override': (
        dict(cfg_options={'train_cfg.max_epochs': 3}),
        'max_epochs cannot be set in cfg_options; use the argument epochs'),
    'more processes than pairs of images': (
        dict(launcher='pytorch'), '8 image.*two for each of 5 process'),
    'a folder without images': (
        {}, 'no images below'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_refused_before_anything_is_written(
        name, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '5')  # of those with a launcher alone
    given, said = MISTAKES[name]
    call = dict(dict(data=photos, model='mini', out=tmp_path / 'out'), **given)
    if name == 'a folder without images':
        (tmp_path / 'empty').mkdir()
        call['data'] = tmp_path / 'empty'
    with pytest.raises(ArgumentError, match=said):
        cmae_mm.pretrain(**call)
    assert not (tmp_path / 'out').exists()


def test_a_misspelt_override_is_refused(photos, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'train_cfg'"):
        cmae_mm.pretrain(photos, 'mini', out=tmp_path / 'out',
                         cfg_options={'trian_cfg.val_interval': 3})
    assert not (tmp_path / 'out').exists()
