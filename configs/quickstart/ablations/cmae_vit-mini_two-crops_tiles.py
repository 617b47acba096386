# CMAE, an ablation of cmae_vit-mini_tiles.py: two independent crops in place
# of the pixel shift; 300 iterations of batch 128.
# Data: $DATA_ROOT, any folder of images.
# cmae train configs/quickstart/ablations/cmae_vit-mini_two-crops_tiles.py
_base_ = [
    '../cmae_vit-mini_tiles.py',
    '../../_base_/datasets/colour_augmentation.py',
]

data_preprocessor = dict(
    _delete_=True,
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
colour = _base_.target_pipeline
colour[-1].magnitude_range = (0.1, 1.0)
crop_and_flip = [
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.2, 1.0),
        backend='cv2',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
]
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageOrSkip'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[crop_and_flip, [*crop_and_flip, *colour]]),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
