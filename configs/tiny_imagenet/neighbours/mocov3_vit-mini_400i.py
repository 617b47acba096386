# MoCo v3 of mmpretrain, a neighbour of cmae_vit-mini_400i.py: its encoder,
# optimizer, range of crops, 400 iterations, batch 64. MoCo v3's own are two
# independent crops, both with CMAE's colour augmentation, temperature 0.2,
# momentum from 0.99 to 1, the symmetric loss and the fixed patch projection.
# Its rate is CMAE's and is not tuned.
# Data: $DATA_ROOT/train/<class>/*; for evaluation val/<class>/*.
# cmae train configs/tiny_imagenet/neighbours/mocov3_vit-mini_400i.py
_base_ = [
    '../cmae_vit-mini_400i.py',
    '../../_base_/datasets/tiles_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)

mlp = dict(
    type='NonLinearNeck',
    hid_channels=512,
    out_channels=128,
    with_bias=False,
    with_last_bn=True,
    with_last_bn_affine=False,
    with_last_bias=False,
    norm_cfg=dict(type='BN1d'))
model = dict(
    _delete_=True,
    type='MoCoV3',
    base_momentum=0.01,  # the share of the new: 1 - 0.99
    backbone=dict(
        type='MoCoV3ViT',
        arch=_base_.vit_mini_96,
        img_size=64,
        patch_size=8,
        stop_grad_conv1=True,
        out_type='featmap'),
    neck=dict(in_channels=96, num_layers=3, with_avg_pool=True, **mlp),
    head=dict(
        type='MoCoV3Head',
        predictor=dict(
            in_channels=128, num_layers=2, with_avg_pool=False, **mlp),
        loss=dict(type='CrossEntropyLoss', loss_weight=2 * 0.2),
        temperature=0.2))

train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageOrSkip'),
    dict(
        type='MultiView',
        num_views=[2],
        transforms=[[*_base_.crop_and_flip, *_base_.colour]]),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# Without the hooks for CMAE's own parts.
custom_hooks = [dict(type='PretrainCheckHook'), dict(type='PrefetchHook')]
