"""Small classifiers on pre-trained encoders, for the tests of transfer."""
from helpers import ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS

from cmae_mm.models import TransferViT

ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)


def transfer_vit(**kwargs) -> TransferViT:
    cfg = dict(
        type='TransferViT', arch=dict(ARCH), img_size=32, patch_size=4)
    return MODELS.build({**cfg, **kwargs})


def classifier_cfg(image_root, work_dir, checkpoint, **overrides) -> Config:
    """A fine-tuning config for small images."""
    cfg = Config.fromfile(ROOT / 'configs/cifar10/finetune_vit-mini_10e.py')
    cfg.merge_from_dict({
        'model.backbone.arch': ARCH,
        'model.backbone.init_cfg.checkpoint': str(checkpoint),
        'model.head.in_channels': 48,
        'model.head.num_classes': 2,
        'data_preprocessor.num_classes': 2,
        'train_cfg.max_epochs': 1,
    })
    for name, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        cfg.merge_from_dict({
            f'{name}_dataloader.dataset.data_root': str(image_root),
            f'{name}_dataloader.dataset.data_prefix': split,
            f'{name}_dataloader.batch_size': 8,
            f'{name}_dataloader.num_workers': 0,
            f'{name}_dataloader.persistent_workers': False,
        })
    for name in ('val', 'test'):
        cfg[f'{name}_dataloader'].dataset.pipeline.insert(
            1, dict(type='Resize', scale=32))
    cfg.param_scheduler = []
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    cfg.merge_from_dict(overrides)
    return cfg
