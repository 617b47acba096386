# Two views of 224 pixels from a canvas of 256 (pixel shift). Workers return
# canvases in uint8; views are computed per batch on the model's device.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
data_root = '{{$DATA_ROOT:data/imagenet}}'

data_preprocessor = dict(
    type='TwoViewDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    size=224,
    max_shift=32,
    canvas_size=256,
    # colour augmentation, of the target view only
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_prob=0.8,
    grey_prob=0.2,
    blur_sigma=(0.1, 2.0),
    blur_prob=0.5)

train_pipeline = [
    dict(
        type='LoadCanvas',
        size=256,
        crop_ratio_range=(0.2, 1.0),
        flip_prob=0.5),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
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
