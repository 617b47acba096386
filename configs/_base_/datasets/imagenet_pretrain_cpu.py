# Two views of 224 pixels from a canvas of 256 (pixel shift): the recipe of
# imagenet_pretrain.py, computed by workers on the CPU, which is slower.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
_base_ = './colour_augmentation.py'

data_root = '{{$DATA_ROOT:data/imagenet}}'

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

target_pipeline = _base_.target_pipeline
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageOrSkip'),
    dict(
        type='RandomResizedCrop',
        scale=256,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PixelShift',
        size=224,
        max_shift=32,
        canvas_size=256,
        target_pipeline=target_pipeline),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,  # per GPU; 8 GPUs make the recipe's 4096
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='PretrainingDataset',
        data_root=data_root,
        pipeline=train_pipeline))
