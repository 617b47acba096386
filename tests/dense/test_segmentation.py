"""Segmentation through the real mmsegmentation."""
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_data import write_maps
from helpers import (COCO, ROOT, needs_coco, require_dense, run_tool,
                     write_images)
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from PIL import Image

require_dense('mmseg')

from mmseg.registry import DATASETS, MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from cmae_mm.dense.segmentation import LoadCategoryMap  # noqa: E402

CONFIGS = sorted((ROOT / 'configs/segmentation').glob('*.py'))
MINI = ROOT / 'configs/segmentation/upernet-mini_coco.py'
HYBRID = ROOT / 'configs/segmentation/upernet-convvit-mini_coco.py'


@pytest.fixture(autouse=True)
def scope():
    """These tests work in mmseg's registries, with its visualizer."""
    Visualizer._instance_dict.clear()
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield




def mini_cfg(root, work_dir, mini_encoder, num_classes=3, config=MINI,
             **overrides) -> Config:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({
        'model.backbone.init_cfg.checkpoint': str(mini_encoder),
        'model.decode_head.num_classes': num_classes,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.batch_size': 4,
        'default_hooks.logger.interval': 1,
    })
    for split in ('train', 'val', 'test'):
        cfg.merge_from_dict({
            f'{split}_dataloader.dataset.data_root': str(root),
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
        })
    cfg.param_scheduler = []
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    cfg.merge_from_dict(overrides)
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_configs_build(path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    model = getattr(model, 'module', model)
    backbone = model.backbone
    assert len(backbone.out_indices) == 4
    crop = cfg.model.get('module', cfg.model).test_cfg.crop_size
    size = backbone.img_size
    assert (size if isinstance(size, tuple) else (size, size)) == tuple(crop)
    if 'convvit' in path.stem:
        assert backbone.map_dims == tuple(model.decode_head.in_channels)
        assert all(block.window_size == 0 for block in backbone.layers)
    elif 'mini' not in path.stem:
        depth = len(backbone.layers)
        assert backbone.out_indices[-1] == depth - 1


@pytest.mark.parametrize('size', [512, 640])
def test_ade20k_crops(size, tmp_path, monkeypatch):
    """Crops of the model's size; ADE20K's 0 is unlabelled."""
    for split in ('training', 'validation'):
        write_images(tmp_path / f'images/{split}', 1, size=900)
        folder = tmp_path / f'annotations/{split}'
        folder.mkdir(parents=True)
        ids = np.zeros((900, 900), np.uint8)
        ids[:450], ids[450:, 450:] = 1, 150
        Image.fromarray(ids).save(folder / '000.png')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    cfg = Config.fromfile(
        ROOT / f'configs/segmentation/upernet-b_160k_ade20k-{size}x{size}.py')
    cfg.train_dataloader.dataset.pipeline[3].ratio_range = (1.5, 2.)
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert sample['inputs'].shape == (3, size, size)
    val = DATASETS.build(cfg.val_dataloader.dataset)[0]
    assert min(val['inputs'].shape[1:]) == size
    values = val['data_samples'].gt_sem_seg.data.unique().tolist()
    assert values == [0, 149, 255]
    assert cfg.model.data_preprocessor.size == (size, size)


def test_category_maps(tmp_path):
    root = write_maps(tmp_path)
    dataset = DATASETS.build(
        dict(
            type='CategoryMapDataset', data_root=str(root),
            categories='semantic/classes.json',
            data_prefix=dict(
                img_path='images/train2017',
                seg_map_path='semantic/train2017')))
    assert dataset.metainfo['classes'] == ('person', 'train', 'rug')
    record = dataset.get_data_info(0)
    ids = np.array(Image.open(record['seg_map_path']))
    loaded = LoadCategoryMap().transform(record)['gt_seg_map']
    for number, category in enumerate((1, 7, 200)):
        assert ((loaded == number) == (ids == category)).all()
    assert ((loaded == 255) == (ids == 0)).all()


def test_train_test_and_infer(mini_encoder, tmp_path):
    """Commands, metrics, drawn predictions and the inferencer."""
    root = write_maps(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert 'val/mIoU' in scalars
    cfg.pop('work_dir')
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    checkpoint = tmp_path / 'work/epoch_1.pth'
    run_tool(sys.executable, 'tools/test.py', tmp_path / 'config.py',
             checkpoint, '--work-dir', tmp_path / 'test', '--out',
             tmp_path / 'out.json')
    assert 'mIoU' in json.loads((tmp_path / 'out.json').read_text())
    drawn = list((tmp_path / 'test').rglob('vis_image/*.png'))
    assert len(drawn) == 8

    from mmseg.apis import MMSegInferencer
    inferencer = MMSegInferencer(
        str(tmp_path / 'config.py'), str(checkpoint), device='cpu')
    found = inferencer(str(root / 'images/val2017/000.jpg'))
    assert found['predictions'].shape == (64, 64)
    assert found['predictions'].max() <= 2


def test_hybrid_encoder_and_images_of_any_size(hybrid_encoder, tmp_path):
    """Padding of odd sides does not change the prediction."""
    root = write_maps(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', hybrid_encoder, config=HYBRID)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert 'val/mIoU' in scalars
    model = runner.model.eval()
    for height, width in ((70, 90), (33, 200)):  # one window, and several
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        sample = SegDataSample(metainfo=dict(
            ori_shape=(height, width), img_shape=(height, width)))
        with torch.no_grad():
            found = model.test_step(
                dict(inputs=[image], data_samples=[sample]))[0]
        logits = found.seg_logits.data
        assert logits.shape == (3, height, width)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (
            [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
        padded = F.pad((image.flip(0) - mean) / std, (0, -width % 32, 0,
                                                      -height % 32))
        side = tuple(padded.shape[1:])
        metas = [dict(img_shape=side, ori_shape=side)]
        with torch.no_grad():
            whole = model.inference(padded[None], metas)[0]
        torch.testing.assert_close(logits, whole[:, :height, :width])


@pytest.mark.parametrize('part, changes, message', [
    ('decode_head', dict(in_channels=[32, 64, 128, 128]),
     r'of \[32, 64, 96, 96\] channels, but model.decode_head.in_channels'),
    ('auxiliary_head', dict(
        type='FCNHead', in_channels=64, in_index=2, channels=8, num_classes=3,
        num_convs=1),
     'gives auxiliary_head maps of 96 channels.*in_channels=64; set it to 96'),
])
def test_invalid_weights_of_a_hybrid_encoder(
        part, changes, message, hybrid_encoder, tmp_path):
    root = write_maps(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', hybrid_encoder, config=HYBRID)
    cfg.model[part] = dict(cfg.model[part] or {}, **changes)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


def test_multi_scale_testing(mini_encoder, tmp_path):
    """A checkpoint of the plain config, tested at several sizes."""
    root = write_maps(tmp_path / 'data', images=2)
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder)
    ms = Config.fromfile(
        ROOT / 'configs/segmentation/upernet-b_160k_ade20k-512x512_ms.py')
    pipeline = ms.tta_pipeline
    pipeline[1].transforms[0] = pipeline[1].transforms[0][:2]
    pipeline[1].transforms[2] = [dict(type='LoadCategoryMap')]
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    torch.save(
        dict(state_dict=runner.model.state_dict(), meta={}),
        tmp_path / 'plain.pth')
    cfg.test_dataloader.dataset.pipeline = pipeline
    cfg.model = dict(type=ms.model.type, module=cfg.model)
    cfg.load_from = str(tmp_path / 'plain.pth')
    cfg.default_hooks.visualization.draw = False
    cfg.resume = False
    cfg.experiment_name = 'ms'
    metrics = Runner.from_cfg(cfg).test()
    assert 'mIoU' in metrics


def _missing_map(root):
    (root / 'semantic/train2017/003.png').unlink()


def _wrong_value(root):
    path = root / 'semantic/train2017/003.png'
    ids = np.array(Image.open(path))
    ids[0, 0] = 99
    Image.fromarray(ids).save(path)


def _no_images(root):
    for p in (root / 'images/val2017').iterdir():
        p.unlink()


@pytest.mark.parametrize('change,overrides,message', [
    (_missing_map, {}, r'1 of 8 images have no segmentation map.*003.png'),
    (_wrong_value, {}, r'003.png has the values \[99\]'),
    (_no_images, {}, 'there are no images'),
    (None, {'model.decode_head.num_classes': 5},
     'has 3 classes, but decode_head has num_classes=5'),
    (None, {'model.backbone.patch_size': 32},
     'patches of 16 pixels(.|\n)*patches of 32 pixels'),
])
def test_bad_input_before_the_first_step(change, overrides, message,
                                         mini_encoder, tmp_path):
    root = write_maps(tmp_path / 'data')
    if change is not None:
        change(root)
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder, **overrides)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Runner.from_cfg(cfg).train()


def test_class_numbers_out_of_range(mini_encoder, tmp_path):
    """Maps of mmseg's own data sets, as ADE20K's, are looked at too."""
    root = write_maps(tmp_path / 'data')
    dataset = dict(
        _delete_=True, type='BaseSegDataset', data_root=str(root),
        metainfo=dict(classes=('a', 'b', 'c')),
        data_prefix=dict(
            img_path='images/train2017', seg_map_path='semantic/train2017'))
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[2] = dict(type='LoadAnnotations')
    dataset.pop('_delete_')
    cfg.train_dataloader.dataset = dict(dataset, pipeline=pipeline)
    with pytest.raises(ValueError, match=r'has the values \[.*7.*200\], but '
                       'there are 3 classes'):
        Runner.from_cfg(cfg).train()


@needs_coco
def test_real_photographs(mini_encoder, tmp_path):
    """The config as it is takes COCO's categories; losses go down."""
    cfg = mini_cfg(
        COCO, tmp_path, mini_encoder, 129,
        **{'train_dataloader.dataset.indices': 8,
           'val_dataloader.dataset.indices': 2,
           'train_cfg.max_epochs': 5,
           'train_cfg.val_interval': 10})
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert np.isfinite(losses).all() and len(losses) == 10
    assert losses[-2:].mean() < losses[:2].mean()  # epochs of two batches
