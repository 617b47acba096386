# CMAE, an ablation of cmae_vit-mini_20e.py: colour augmentation of the online
# view and the target view; 20 epochs, batch 256.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/ablations/cmae_vit-mini_colour-both_20e.py
_base_ = [
    '../cmae_vit-mini_20e.py',
    '../../_base_/datasets/cifar10_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadCanvas', size=36, crop_ratio_range=(0.2, 1.0)),
    dict(
        type='PixelShift',
        size=32,
        max_shift=4,
        canvas_size=36,
        online_pipeline=_base_.colour,
        target_pipeline=_base_.colour),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
