# CMAE, the small ViT of vitdet-mini and upernet-mini, on a few photographs,
# for 2 CPU cores. Data: $DATA_ROOT/images/train2017
_base_ = '../quickstart/cmae_vit-mini_tiles.py'

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
        arch=dict(
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=384),
        img_size=128,
        patch_size=16))

train_dataloader = dict(
    batch_size=64,
    sampler=dict(type='SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        data_root=data_root,
        split='images/train2017',
        pipeline=[
            dict(type='LoadCanvas', size=144, crop_ratio_range=(0.1, 1.0)),
            dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
        ]))

max_iters = 500
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        T_max=max_iters - 100,
        begin=100,
        end=max_iters),
]
auto_scale_lr = dict(base_batch_size=64)
