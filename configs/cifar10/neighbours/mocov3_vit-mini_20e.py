# MoCo v3 of mmpretrain, a neighbour of cmae_vit-mini_20e.py: its encoder,
# optimizer, range of crops, 20 epochs, batch 256. MoCo v3's own are two
# independent crops, both with CMAE's colour augmentation, temperature 0.2,
# momentum from 0.99 to 1, the symmetric loss and the fixed patch projection;
# projector and predictor have CMAE's width and use the mean patch token,
# as k-NN and the probes do. Its rate is CMAE's and is not tuned.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/neighbours/mocov3_vit-mini_20e.py
_base_ = [
    '../cmae_vit-mini_20e.py',
    '../../_base_/datasets/cifar10_view_parts.py',
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
    norm_cfg=dict(type='BN1d'))  # across GPUs by sync_bn
model = dict(
    _delete_=True,
    type='MoCoV3',
    base_momentum=0.01,  # the share of the new: 1 - 0.99
    backbone=dict(
        type='MoCoV3ViT',
        arch=_base_.model.backbone.arch,
        img_size=32,
        patch_size=4,
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
