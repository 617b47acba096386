# SimMIM of mmpretrain, a neighbour of cmae_vit-mini_400i.py: its encoder,
# optimizer, crops, 400 iterations, batch 64. The mask is SimMIM's, 60 % in
# squares of 2x2 patches. Its rate is CMAE's and is not tuned.
# Data: $DATA_ROOT/train/<class>/*; for evaluation val/<class>/*.
# cmae train configs/tiny_imagenet/neighbours/simmim_vit-mini_400i.py
_base_ = [
    '../cmae_vit-mini_400i.py',
    '../../_base_/datasets/tiles_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)

model = dict(
    _delete_=True,
    type='SimMIM',
    backbone=dict(
        type='SimMIMViT',
        arch=_base_.vit_mini_96,
        img_size=64,
        patch_size=8),
    neck=dict(type='SimMIMLinearDecoder', in_channels=96, encoder_stride=8),
    head=dict(
        type='SimMIMHead',
        patch_size=8,
        loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3)))

train_pipeline = [
    dict(type='SeedDraws'),
    dict(
        type='LoadCanvas',
        size=64,
        crop_ratio_range=(0.2, 1.0),
        flip_prob=0.5),
    dict(
        type='SimMIMMaskGenerator',
        input_size=64,
        mask_patch_size=16,
        model_patch_size=8,
        mask_ratio=0.6),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# Without the hooks for CMAE's own parts.
custom_hooks = [dict(type='PretrainCheckHook'), dict(type='PrefetchHook')]
