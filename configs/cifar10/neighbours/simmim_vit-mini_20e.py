# SimMIM of mmpretrain, a neighbour of cmae_vit-mini_20e.py: its encoder,
# optimizer, crops, 20 epochs, batch 256. The mask is SimMIM's, 60 % in squares
# of 2x2 patches. Its rate is CMAE's and is not tuned.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/neighbours/simmim_vit-mini_20e.py
_base_ = [
    '../cmae_vit-mini_20e.py',
    '../../_base_/datasets/cifar10_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)

model = dict(
    _delete_=True,
    type='SimMIM',
    backbone=dict(
        type='SimMIMViT',
        arch=_base_.model.backbone.arch,
        img_size=32,
        patch_size=4),
    neck=dict(type='SimMIMLinearDecoder', in_channels=96, encoder_stride=4),
    head=dict(
        type='SimMIMHead',
        patch_size=4,
        loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3)))

train_pipeline = [
    dict(type='SeedDraws'),
    dict(
        type='LoadCanvas',
        size=32,
        crop_ratio_range=(0.2, 1.0),
        flip_prob=0.5),
    dict(
        type='SimMIMMaskGenerator',
        input_size=32,
        mask_patch_size=8,
        model_patch_size=4,
        mask_ratio=0.6),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# Without the hooks for CMAE's own parts.
custom_hooks = [dict(type='PretrainCheckHook'), dict(type='PrefetchHook')]
