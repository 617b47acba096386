"""Detection through the real mmdetection, with its compiled operators."""
import json
import sys

import numpy as np
import pytest
import torch
from dense_data import write_coco
from helpers import COCO, ROOT, needs_coco, require_dense, run_tool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmpretrain.registry import MODELS as PRETRAIN_MODELS
from PIL import Image

require_dense('mmdet')

from mmdet.registry import DATASETS, MODELS  # noqa: E402

CONFIGS = sorted((ROOT / 'configs/detection').glob('*.py'))
MINI = ROOT / 'configs/detection/vitdet-mini_mask-rcnn_coco.py'
HYBRID = ROOT / 'configs/detection/convvit-mini_mask-rcnn_coco.py'


@pytest.fixture(autouse=True)
def scope():
    """These tests work in mmdet's registries, with its visualizer."""
    Visualizer._instance_dict.clear()
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield




def mini_cfg(root, work_dir, mini_encoder, classes=('cat', 'dog'),
             config=MINI, **overrides) -> Config:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({
        'model.backbone.init_cfg.checkpoint': str(mini_encoder),
        'model.roi_head.bbox_head.num_classes': len(classes),
        'model.roi_head.mask_head.num_classes': len(classes),
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'default_hooks.logger.interval': 1,
    })
    for split in ('train', 'val', 'test'):
        cfg.merge_from_dict({
            f'{split}_dataloader.dataset.data_root': str(root),
            f'{split}_dataloader.dataset.metainfo': dict(classes=classes),
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
        })
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = str(
            root / 'annotations/instances_val2017.json')
    cfg.param_scheduler = []
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    cfg.merge_from_dict(overrides)
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_configs_build(path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        kind = 'convvit' if path.stem.startswith('convvit') else 'vit'
        pretraining = 'cmae_vit-l_800e' if 'vitdet-l' in path.stem else (
            f'coco_mini/cmae_{kind}-mini_coco' if 'mini' in path.stem else
            f'cmae_{kind}-b_300e')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            vit = PRETRAIN_MODELS.build(
                Config.fromfile(
                    ROOT / f'configs/{pretraining}.py').model.backbone)
    theirs = {k: v.shape for k, v in vit.state_dict().items()}
    for name, value in model.backbone.state_dict().items():
        if 'rel_pos' not in name and name != 'pos_embed':
            assert value.shape == theirs[name], name
    if 'mini' not in path.stem:
        # 4 global blocks, windows in all others
        sizes = [layer.window_size for layer in model.backbone.layers]
        side = 16 if kind == 'convvit' else 14
        assert sizes.count(0) == 4 and set(sizes) == {0, side}
        assert sizes[-1] == 0


def test_train_test_and_infer(mini_encoder, tmp_path):
    """Commands, metrics, drawn predictions and the inferencer."""
    root = write_coco(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    for kind in ('bbox', 'segm'):
        assert f'val/coco/{kind}_mAP' in scalars
    cfg.pop('work_dir')
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    checkpoint = tmp_path / 'work/epoch_1.pth'
    run_tool(sys.executable, 'tools/test.py', tmp_path / 'config.py',
             checkpoint, '--work-dir', tmp_path / 'test', '--out',
             tmp_path / 'out.json')
    metrics = json.loads((tmp_path / 'out.json').read_text())
    assert metrics.keys() >= {'coco/bbox_mAP', 'coco/segm_mAP'}
    drawn = list((tmp_path / 'test').rglob('predictions/*.jpg'))
    assert len(drawn) == 4

    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(
        str(tmp_path / 'config.py'), str(checkpoint), device='cpu')
    found = inferencer(
        str(root / 'images/val2017/000.jpg'), no_save_vis=True)
    predictions = found['predictions'][0]
    assert {'bboxes', 'labels', 'masks', 'scores'} <= predictions.keys()


def test_hybrid_encoder_and_images_of_any_size(hybrid_encoder, tmp_path):
    """Commands' runner, metrics, and the inferencer on odd sides."""
    root = write_coco(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', hybrid_encoder, config=HYBRID)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert 'val/coco/segm_mAP' in scalars
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[1].scale = (1000, 90)
    cfg.pop('work_dir')
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    seen = []
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(
        str(tmp_path / 'config.py'), str(tmp_path / 'work/epoch_1.pth'),
        device='cpu')
    inferencer.model.backbone.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[2:])))
    for height, width in ((90, 131), (31, 200), (210, 45)):
        image = np.random.randint(0, 256, (height, width, 3), np.uint8)
        found = inferencer(image, no_save_vis=True)['predictions'][0]
        boxes = np.array(found['bboxes']).reshape(-1, 4)
        assert len(boxes) > 0 and boxes.min() >= 0
        assert (boxes.max(axis=0) <= [width, height] * 2).all()
    assert seen == [(96, 160), (96, 608), (448, 96)]
    # boxes, which are cast to the levels' type, are not rounded
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        levels = inferencer.model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert {level.dtype for level in levels} == {torch.float32}


@pytest.mark.parametrize('name', ['vitdet-mini_mask-rcnn_coco',
                                  'vitdet-b_cascade-mask-rcnn_100e_coco'])
def test_bfloat16(name, mini_encoder, tmp_path, monkeypatch):
    """Losses, gradients and predictions under autocast, as on a GPU."""
    root = write_coco(tmp_path / 'data')
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder)
    if 'cascade' in name:
        cascade = Config.fromfile(ROOT / f'configs/detection/{name}.py').model
        small = cfg.model
        head = small.roi_head
        cfg.model = dict(
            cascade, backbone=small.backbone, neck=small.neck,
            rpn_head=small.rpn_head, data_preprocessor=small.data_preprocessor)
        cfg.merge_from_dict({
            f'model.roi_head.{k}': head[k]
            for k in ('bbox_roi_extractor', 'mask_roi_extractor', 'mask_head')
        })
        for one in cfg.model.roi_head.bbox_head:
            one.update(in_channels=64, conv_out_channels=64,
                       fc_out_channels=64, num_classes=2)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    model = runner.model.train()
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    with torch.autocast('cpu', torch.bfloat16):
        data = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    gradient = model.backbone.patch_embed.projection.weight.grad
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    model.eval()
    batch = next(iter(runner.build_dataloader(cfg.val_dataloader)))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found = model.val_step(batch)[0].pred_instances
    assert found.bboxes.dtype == torch.float32


def test_large_scale_jitter(tmp_path, monkeypatch):
    """Whole squares of 1024 pixels, with the masks where the boxes are."""
    write_coco(tmp_path / 'data', classes=('person', 'bicycle'))
    (tmp_path / 'data/train2017').symlink_to(
        tmp_path / 'data/images/train2017')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'data'))
    cfg = Config.fromfile(
        ROOT / 'configs/detection/vitdet-b_mask-rcnn_100e_coco.py')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    seen = 0
    for i in range(4):
        sample = dataset[i]
        assert sample['inputs'].shape == (3, 1024, 1024)
        instances = sample['data_samples'].gt_instances
        seen += len(instances)
        for box, mask in zip(instances.bboxes.tensor,
                             instances.masks.to_tensor(torch.bool, 'cpu')):
            rows, columns = mask.nonzero(as_tuple=True)
            found = torch.stack([columns.min(), rows.min(),
                                 columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() <= 2
    assert seen > 0
    cfg.val_dataloader.dataset.data_prefix.img = 'images/val2017'
    assert cfg.val_evaluator.ann_file == str(
        tmp_path / 'data/annotations/instances_val2017.json')


def test_boxes_end_at_the_image_and_not_at_its_padding(mini_encoder,
                                                       tmp_path):
    """Of a wide image, which is padded to a square; masks are pasted too."""
    root = write_coco(tmp_path / 'data', images=1)
    path, = (root / 'images/val2017').iterdir()
    Image.open(path).crop((0, 0, 96, 40)).save(path)
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder, **{
        'model.test_cfg.rcnn.score_thr': 0.})
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.build_dataloader(cfg.val_dataloader)))
    assert runner.model.data_preprocessor(
        batch)['inputs'].shape == (1, 3, 256, 256)
    found = runner.model.eval().val_step(batch)[0].pred_instances
    assert len(found) == 100 and found.masks.shape[1:] == (40, 96)
    assert found.bboxes[:, 3].max() <= 40.5


def _edit(root, change):
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _missing(root):
    (root / 'images/train2017/002.jpg').unlink()


def _renamed(root):
    _edit(root, lambda c: c['categories'][1].update(name='wolf'))


def _reordered(root):
    _edit(root, lambda c: c['categories'].reverse())


@pytest.mark.parametrize('change,overrides,message', [
    (_missing, {}, '1 of 4 images in the train annotations do not exist'),
    (_renamed, {}, r'not a class \(wolf\), 1 classes are no category \(dog\)'),
    (_reordered, {}, 'in another order'),
    (None, {'model.roi_head.mask_head.num_classes': 3},
     'has 2 classes, but mask_head has num_classes=3'),
    (None, {'model.backbone.patch_size': 32},
     'patches of 16 pixels(.|\n)*patches of 32 pixels'),
    (None, {'model.backbone.init_cfg.checkpoint': ''},
     'no checkpoint was given'),
])
def test_bad_input_before_the_first_step(change, overrides, message,
                                         mini_encoder, tmp_path):
    root = write_coco(tmp_path / 'data')
    if change is not None:
        change(root)
    cfg = mini_cfg(root, tmp_path / 'work', mini_encoder, **overrides)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('overrides,message', [
    ({'model.neck.in_channels': [32, 64, 128, 128]},
     r'gives neck maps of \[32, 64, 96, 96\] channels, but model.neck.in_ch'),
    ({'model.backbone.arch.embed_dims': [32, 64, 48]},
     '96 wide(.|\n)*48 wide'),
    ({'model.backbone.init_cfg.checkpoint': 'plain'},
     'plain .* hybrid encoder'),
])
def test_invalid_weights_of_a_hybrid_encoder(
        overrides, message, mini_encoder, hybrid_encoder, tmp_path):
    root = write_coco(tmp_path / 'data')
    checkpoint = mini_encoder if 'plain' in overrides.values() else (
        hybrid_encoder)
    overrides = {k: v for k, v in overrides.items() if v != 'plain'}
    cfg = mini_cfg(root, tmp_path / 'work', checkpoint, config=HYBRID,
                   **overrides)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


@needs_coco
def test_real_photographs(mini_encoder, tmp_path):
    """The config as it is takes COCO's annotations; losses go down."""
    classes = tuple(
        c['name'] for c in json.loads(
            (COCO / 'annotations/instances_train2017.json').read_text())
        ['categories'])
    cfg = mini_cfg(
        COCO, tmp_path, mini_encoder, classes,
        **{'train_dataloader.dataset.indices': 4,
           'train_dataloader.batch_size': 2,
           'val_dataloader.dataset.indices': 2,
           'train_cfg.max_epochs': 4,
           'train_cfg.val_interval': 10})
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
