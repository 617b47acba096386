# CMAE, an ablation of cmae_vit-mini_20e.py: two independent crops in place of
# the pixel shift; 20 epochs, batch 256.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/ablations/cmae_vit-mini_two-crops_20e.py
_base_ = [
    '../cmae_vit-mini_20e.py',
    '../../_base_/datasets/cifar10_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageOrSkip'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[
            _base_.crop_and_flip, [*_base_.crop_and_flip, *_base_.colour]
        ]),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
