import copy
import math

import pytest
import torch
from helpers import ROOT, write_images
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS

# Of pre-training; the others are built in the tests of their tasks.
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py')
                 if p.name.startswith(('cmae_', 'mae_'))
                 and '_base_' not in p.parts)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    write_images(root / 'train' / 'a', 2, size=300)
    return root


@pytest.mark.parametrize(
    'path', CONFIGS, ids=lambda p: str(p.relative_to(ROOT / 'configs')))
def test_config_builds_its_model_and_its_pipeline(path, photos, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', str(photos))
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = default_collate([dataset[0]] * 2)
    inputs = batch['inputs']
    assert all(v.dtype == torch.uint8 for v in inputs)
    # as in a training step: two views of the size that the model takes
    preprocessor = MODELS.build(cfg.data_preprocessor)
    views = preprocessor(batch, training=True)['inputs']
    size = model.backbone.img_size[0]
    count = 2 if model.with_contrast else 1
    assert [v.shape for v in views] == [(2, 3, size, size)] * count
    hooks = [h['type'] for h in cfg.custom_hooks]
    assert ('TargetUpdateHook' in hooks) == model.with_contrast
    assert {'PretrainCheckHook', 'PrefetchHook'} <= set(hooks)


@pytest.mark.parametrize('name, epochs', [('cmae_vit-b_100e', 100),
                                          ('cmae_vit-b_300e', 300),
                                          ('cmae_vit-b_800e', 800),
                                          ('cmae_vit-b_1600e', 1600)])
def test_the_released_recipe(name, epochs):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert optimizer.betas == (0.9, 0.95) and optimizer.weight_decay == 0.05
    assert cfg.auto_scale_lr.base_batch_size == 4096
    assert cfg.train_dataloader.batch_size * 8 == 4096
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[-1].end == epochs
    backbone = cfg.model.backbone
    assert (backbone.mask_ratio, backbone.mask_block) == (0.65, 2)
    contrastive = cfg.model.head.contrastive
    assert contrastive.scale_by_temperature
    assert (contrastive.temperature, cfg.model.target.momentum) == (0.07,
                                                                    0.996)
    assert cfg.resume and cfg.default_hooks.checkpoint.max_keep_ckpts == 3


def test_the_papers_text():
    cfg = Config.fromfile(ROOT / 'configs/cmae_vit-b_mask75_300e.py')
    assert (cfg.model.backbone.mask_ratio, cfg.model.backbone.mask_block) == (
        0.75, 1)
    assert not cfg.model.head.contrastive.scale_by_temperature


def test_learning_rate_of_the_schedule(tmp_path):
    """Warm-up to the peak, then a cosine to 0, step by step."""
    cfg = Config.fromfile(ROOT / 'configs/cmae_vit-b_100e.py')
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.)
    from mmengine.registry import PARAM_SCHEDULERS
    steps = 5  # per epoch
    schedulers = []
    for scheduler in cfg.param_scheduler:
        scheduler = copy.deepcopy(scheduler)
        scheduler.pop('convert_to_iter_based')
        cls = PARAM_SCHEDULERS.get(scheduler.pop('type'))
        schedulers.append(
            cls.build_iter_from_epoch(
                optimizer, **scheduler, epoch_length=steps))
    rates = []
    for _ in range(100 * steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1., rel=0.03)
    middle = rates[55 * steps]
    assert middle == pytest.approx(
        (1 + math.cos(math.pi * 45 / 90)) / 2, abs=0.02)
    assert rates[-1] < 1e-4


def test_two_independent_crops_in_place_of_pixel_shift(photos):
    """The paper's ablation, with mmpretrain's MultiView."""
    crop = dict(
        type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0))
    cfg = Config.fromfile(ROOT / 'configs/_base_/imagenet_224_cpu.py')
    pipeline = [
        cfg.train_pipeline[1],
        dict(
            type='MultiView',
            num_views=[1, 1],
            transforms=[[crop], [crop, *cfg.target_pipeline]]),
        dict(type='PackInputs'),
    ]
    dataset = DATASETS.build(
        dict(
            type='PretrainingDataset',
            data_root=str(photos),
            pipeline=pipeline))
    online, target = dataset[0]['inputs']
    assert online.shape == target.shape == (3, 32, 32)
    assert not torch.equal(online, target)


def test_data_root_comes_from_the_environment(monkeypatch):
    path = ROOT / 'configs/cmae_vit-b_300e.py'
    monkeypatch.delenv('DATA_ROOT', raising=False)
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.dataset.data_root == 'data/imagenet'
    monkeypatch.setenv('DATA_ROOT', '/some/where')
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.dataset.data_root == '/some/where'


def test_base_parts_need_no_other_package():
    for path in (ROOT / 'configs').rglob('*.py'):
        assert '::' not in path.read_text(), path
    assert Runner is not None
