"""Every default config, with a small model and few images."""
from contextlib import contextmanager

import numpy as np
import torch
from dense_data import write_coco, write_maps
from helpers import ROOT, write_images
from mmengine.config import Config, ConfigDict
from mmpretrain.registry import OPTIM_WRAPPERS
from PIL import Image

from cmae_mm.engine import AutoAmpOptimWrapper

CONFIGS = {
    str(p.relative_to(ROOT / 'configs').with_suffix('')): p
    for p in sorted((ROOT / 'configs').rglob('*.py'))
    # ..._ms is for testing alone: its model has no losses.
    if '_base_' not in p.parts and not p.stem.endswith('_ms')
}
WIDTH = 48
ARCH = dict(
    global_attn_indexes=[3],
    embed_dims=WIDTH, num_layers=4, num_heads=3, feedforward_channels=96)
HYBRID = dict(
    global_attn_indexes=[1],
    embed_dims=[16, 24, WIDTH], depths=[1, 1, 2], num_heads=3)
MAPS = [16, 24, WIDTH, WIDTH]
DECODER = dict(decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2)


@OPTIM_WRAPPERS.register_module()
class CPUAutocastOptimWrapper(AutoAmpOptimWrapper):
    """Autocasts where ``AutoAmpOptimWrapper`` would on a GPU."""

    def __init__(self, dtype: str, **kwargs) -> None:
        super().__init__(dtype='float32', **kwargs)
        self.cpu_dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast(
                'cpu', dtype=self.cpu_dtype):
            yield


def _replace(node, changes: dict):
    """Change values wherever they stand in a config."""
    if isinstance(node, dict):
        return ConfigDict(
            {k: _replace(v, changes) for k, v in node.items()})
    if isinstance(node, (list, tuple)):
        for old, new in changes.items():
            if tuple(node) == old:
                return new
        return type(node)(_replace(v, changes) for v in node)
    return node


def _narrow(node) -> None:
    """Make all layers of a detector's neck and heads 16 wide, in place."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key.endswith('_channels') and isinstance(value, int):
            node[key] = 16
        for part in value if isinstance(value, list) else [value]:
            _narrow(part)


def _shrink_pretraining(cfg: Config, root, images: int) -> None:
    cfg.model.neck.pixel_decoder.update(DECODER)
    if cfg.model.neck.get('feature_decoder'):
        cfg.model.neck.feature_decoder.update(DECODER)
    split = cfg.train_dataloader.dataset.get('split', 'train')
    write_images(root / split / 'a', images, size=300)


def _shrink_neighbour(cfg: Config, root, images: int) -> None:
    cfg.model.neck.in_channels = WIDTH
    write_images(root / 'train' / 'a', images, size=300)


def _shrink_classifier(cfg: Config, root, images: int) -> None:
    if cfg.model.get('neck') is not None:
        cfg.model.neck.input_features = WIDTH
    # of a hybrid encoder they are its three stages
    if 'ConvViT' not in cfg.model.backbone.type and (
            cfg.model.backbone.get('frozen_stages', -1) > 0):
        cfg.model.backbone.frozen_stages = ARCH['num_layers']
    cfg.model.head.in_channels = WIDTH
    dataset = cfg.train_dataloader.dataset
    for name in 'ab':
        write_images(root / 'train' / name, images, size=300)
    if dataset.get('ann_file'):
        (root / dataset.ann_file).parent.mkdir()
        (root / dataset.ann_file).write_text(
            'train/a/000.jpg 0\ntrain/b/001.jpg 1\n')
        dataset.data_prefix = dataset.data_prefix and ''


def _shrink_detector(cfg: Config, root, images: int) -> None:
    write_coco(root, images)
    cfg.train_dataloader.dataset.data_prefix.img = 'images/train2017/'
    cfg.model.backbone.img_size = 128
    for part in (cfg.model.neck, cfg.model.rpn_head, cfg.model.roi_head):
        _narrow(part)
    hybrid = 'ConvViT' in cfg.model.backbone.type
    cfg.model.neck.in_channels = MAPS if hybrid else WIDTH
    cfg.train_dataloader = _replace(cfg.train_dataloader, {
        (1024, 1024): (128, 128), (256, 256): (128, 128),
        (0.1, 2.0): (0.8, 1.25)})
    cfg.train_dataloader.dataset.filter_cfg.min_size = 1


def _shrink_segmentor(cfg: Config, root, images: int) -> None:
    write_maps(root, images)
    write_images(root / 'images/training', images, size=160)
    (root / 'annotations/training').mkdir(parents=True)
    ids = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(80, 0)
    for i in range(images):
        Image.fromarray(ids.repeat(80, 1)).save(
            root / f'annotations/training/{i:03d}.png')
    small = {(side, side): (96, 96) for side in (160, 512, 640)}
    small |= {(4 * side, side): (384, 96) for side in (160, 512, 640)}
    cfg.train_dataloader = _replace(cfg.train_dataloader, small)
    cfg.model = _replace(cfg.model, small)
    cfg.model.backbone.update(img_size=96, out_indices=[0, 1, 2, 3])
    hybrid = 'ConvViT' in cfg.model.backbone.type
    if not hybrid:
        cfg.model.neck.embed_dim = WIDTH
    cfg.model.decode_head.update(
        in_channels=MAPS if hybrid else [WIDTH] * 4, channels=24)
    if cfg.model.auxiliary_head is not None:
        cfg.model.auxiliary_head.update(in_channels=WIDTH, channels=24)


def shrunken(name: str, root, work_dir, images: int = 2) -> Config:
    """Give a default config with a small model, two images a batch."""
    cfg = Config.fromfile(CONFIGS[name])
    scope = cfg.default_scope
    cfg.train_dataloader.dataset.data_root = str(root)
    shrink = dict(mmdet=_shrink_detector, mmseg=_shrink_segmentor).get(
        scope, _shrink_pretraining if cfg.model.type == 'CMAE' else
        _shrink_neighbour if '/neighbours/' in name else _shrink_classifier)
    # Without mmengine's merging: nothing of the large one may stay.
    hybrid = 'ConvViT' in cfg.model.backbone.type
    cfg.model.backbone.arch = ConfigDict(HYBRID if hybrid else ARCH)
    shrink(cfg, root, images)
    if cfg.model.backbone.get('init_cfg') is not None:
        cfg.model.backbone.init_cfg.checkpoint = 'random'
    cfg.train_dataloader.update(
        batch_size=2, num_workers=0, persistent_workers=False,
        pin_memory=False, prefetch_factor=None)
    cfg.optim_wrapper.type = 'mmpretrain.CPUAutocastOptimWrapper'
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator',
                'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key, None)
    cfg.work_dir, cfg.launcher, cfg.resume = str(work_dir), 'none', False
    return cfg
