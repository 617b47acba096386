# CMAE, the small ViT of vitdet-mini and upernet-mini on a few photographs: 500
# iterations of batch 64, on 2 CPU cores.
# Data: $DATA_ROOT/images/train2017/*.jpg
# cmae train configs/coco_mini/cmae_vit-mini_coco.py
_base_ = [
    '../_base_/models/vit-mini_96.py',
    '../quickstart/cmae_vit-mini_tiles.py',
]

data_root = '{{$DATA_ROOT:data/coco_mini}}'
data_preprocessor = dict(
    _delete_=True,
    type='TwoViewDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    size=128,
    max_shift=16,
    canvas_size=144,
    blur_sigma=(0.1, 1.0))

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.vit_mini_96),
        img_size=128,
        patch_size=16))

train_pipeline = [
    dict(type='LoadCanvas', size=144, crop_ratio_range=(0.1, 1.0)),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
]
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        data_root=data_root, split='images/train2017',
        pipeline=train_pipeline))

train_cfg = dict(max_iters=500)
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=400, end=500)
