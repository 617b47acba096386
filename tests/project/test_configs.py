import copy
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, write_images
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS, MODELS

FOLDER = ROOT / 'configs'
ALL = sorted(p for p in FOLDER.rglob('*.py') if '_base_' not in p.parts)
# Of pre-training; the others are built in the tests of their tasks.
CONFIGS = [p for p in ALL if p.name.startswith(('cmae_', 'mae_'))]


def read(name: str) -> Config:
    if name.startswith('detection/') and not find_spec('mmdet'):
        pytest.skip("inherits a config of mmdetection's")
    # The modules of detection and segmentation need their libraries.
    return Config.fromfile(
        FOLDER / f'{name}.py', import_custom_modules=False)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    write_images(root / 'train' / 'a', 2, size=300)
    return root


@pytest.mark.parametrize(
    'path', CONFIGS, ids=lambda p: str(p.relative_to(FOLDER)))
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
    contrastive = model.target is not None
    count = 2 if contrastive else 1
    assert [v.shape for v in views] == [(2, 3, size, size)] * count
    hooks = [h['type'] for h in cfg.custom_hooks]
    assert ('TargetUpdateHook' in hooks) == contrastive
    assert {'PretrainCheckHook', 'PrefetchHook'} <= set(hooks)


@pytest.mark.parametrize('name, epochs', [('cmae_vit-b_300e', 300),
                                          ('cmae_vit-b_800e', 800),
                                          ('cmae_vit-b_1600e', 1600),
                                          ('cmae_convvit-b_300e', 300),
                                          ('cmae_convvit-b_800e', 800)])
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
    cfg = Config.fromfile(ROOT / 'configs/cmae_vit-b_300e.py')
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
    for _ in range(300 * steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1., rel=0.03)
    middle = rates[170 * steps]
    assert middle == pytest.approx(
        (1 + math.cos(math.pi * 130 / 260)) / 2, abs=0.02)
    assert rates[-1] < 1e-4


def test_two_independent_crops_in_place_of_pixel_shift(photos):
    """The paper's ablation, with mmpretrain's MultiView."""
    crop = dict(
        type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0))
    cfg = read('_base_/datasets/imagenet_pretrain_cpu')
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


# What docs/transfer.md tells: learning rate, decay, layer decay, epochs or
# iterations, batch.
TRANSFER = {
    'finetune/vit-s_pt300e_100e_in1k': (2e-3, 0.05, 0.65, 100, 1024),
    'finetune/vit-b_pt300e_100e_in1k': (2e-3, 0.05, 0.65, 100, 1024),
    'finetune/vit-b_pt1600e_100e_in1k': (1e-3, 0.05, 0.65, 100, 1024),
    'finetune/vit-l_pt800e_50e_in1k': (4e-3, 0.05, 0.75, 50, 1024),
    'finetune/vit-h_pt800e_50e_in1k': (4e-3, 0.05, 0.75, 50, 1024),
    'finetune/convvit-b_100e_in1k': (2e-3, 0.05, 0.65, 100, 1024),
    'linear/vit-b_90e_in1k': (6.4, 0., None, 90, 16384),
    'linear/convvit-b_90e_in1k': (6.4, 0., None, 90, 16384),
    'detection/vitdet-b_mask-rcnn_100e_coco': (1e-4, 0.1, 0.7, 100, 64),
    'detection/vitdet-l_mask-rcnn_100e_coco': (1e-4, 0.1, 0.8, 100, 64),
    'detection/vitdet-b_mask-rcnn_1x_coco': (1e-4, 0.1, 0.7, 12, 16),
    'detection/convvit-b_mask-rcnn_25e_coco': (8e-5, 0.1, 0.7, 25, 32),
    'segmentation/upernet-convvit-b_160k_ade20k-512x512':
    (1e-4, 0.05, 0.75, 160000, 16),
    'segmentation/upernet-b_160k_ade20k-512x512':
    (1e-4, 0.05, 0.65, 160000, 16),
    'segmentation/upernet-l_160k_ade20k-512x512':
    (1e-4, 0.05, 0.75, 160000, 16),
}


@pytest.mark.parametrize('name', TRANSFER)
def test_the_recipes_of_transfer(name):
    cfg = read(name)
    wrapper, length = cfg.optim_wrapper, cfg.train_cfg
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay,
            wrapper.paramwise_cfg.get('layer_decay_rate'),
            length.get('max_epochs') or length.max_iters,
            cfg.auto_scale_lr.base_batch_size) == TRANSFER[name]
    assert cfg.param_scheduler[-1].end == TRANSFER[name][3]


def test_the_detector_inherits_maskrcnns_usual_settings():
    """They come from mmdetection; another version's must be the same."""
    model = read('detection/vitdet-b_mask-rcnn_100e_coco').model
    assert model.type == 'MaskRCNN' and 'depth' not in model.backbone
    head = model.roi_head
    assert (head.bbox_roi_extractor.roi_layer.output_size,
            head.mask_roi_extractor.roi_layer.output_size) == (7, 14)
    assert head.bbox_head.loss_bbox.type == 'L1Loss'
    assert head.mask_head.num_convs == 4
    anchors = model.rpn_head.anchor_generator
    assert anchors.scales == [8] and anchors.ratios == [0.5, 1.0, 2.0]
    train, test = model.train_cfg, model.test_cfg
    assert (train.rpn.sampler.num, train.rcnn.sampler.num) == (256, 512)
    assert (train.rpn_proposal.nms_pre, train.rpn_proposal.max_per_img,
            test.rpn.nms_pre, test.rpn.max_per_img) == (2000, 1000, 1000, 1000)
    assert (test.rcnn.score_thr, test.rcnn.nms.iou_threshold,
            test.rcnn.max_per_img) == (0.05, 0.5, 100)
    cascade = read('detection/vitdet-b_cascade-mask-rcnn_100e_coco').model
    assert [h.bbox_coder.target_stds[2] for h in cascade.roi_head.bbox_head
            ] == [0.2, 0.1, 0.067]
    stages = [s.assigner for s in cascade.train_cfg.rcnn]
    assert [s.pos_iou_thr for s in stages] == [0.5, 0.6, 0.7]
    assert not any(s.match_low_quality for s in stages)


@pytest.mark.parametrize(
    'name', [str(p.relative_to(FOLDER).with_suffix('')) for p in ALL])
def test_first_lines_of_configs_are_true(name):
    """The recipe's length and batch, the data, and the command."""
    lines = (FOLDER / f'{name}.py').read_text().splitlines()
    count = next(
        i for i, line in enumerate(lines) if not line.startswith('#'))
    text = ' '.join(line.lstrip('# ') for line in lines[:count])
    assert 'Data: $DATA_ROOT' in text
    command = re.search(r'(cmae train|dist_train.sh|dist_test.sh)[ \\]+'
                        rf'configs/{re.escape(name)}\.py', text)
    assert command, text
    if command[1] == 'dist_test.sh':
        return
    cfg = read(name)
    # the last: before it may stand the pre-training's
    length, unit = re.findall(r'([\d,]+) (epochs|iterations)', text)[-1]
    key = dict(epochs='max_epochs', iterations='max_iters')[unit]
    assert cfg.train_cfg[key] == int(length.replace(',', ''))
    batch = int(re.search(r'batch (?:of )?(\d+)', text)[1])
    assert cfg.auto_scale_lr.base_batch_size == batch
    # ... which the command makes, on so many machines and GPUs
    machines = int((re.search(r'NNODES=(\d+)', text) or '11')[1])
    gpus = 8 if command[1] == 'dist_train.sh' else 1
    assert cfg.train_dataloader.batch_size * machines * gpus == batch


def test_only_detection_needs_another_librarys_configs():
    inherits = [p.name for p in FOLDER.rglob('*.py')
                if re.search(r'\w::\w', p.read_text())]
    assert inherits == ['mask-rcnn_vitdet-b.py']


def test_mim_index_is_valid():
    """Of each model in configs/metafile.yml: its config, epochs and batch."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index['Import'] == ['configs/metafile.yml']
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    assert {m['Config'] for m in models} == {
        f'configs/{p.name}' for p in FOLDER.glob('cmae_*.py')}
    for model in models:
        cfg = Config.fromfile(ROOT / model['Config'])
        assert Path(model['Config']).stem == model['Name']
        told = model['Metadata']
        assert cfg.train_cfg.max_epochs == told['Epochs']
        assert cfg.auto_scale_lr.base_batch_size == told['Batch Size']
