# A small CMAE on 64-pixel images, for 2 CPU cores: what tools/quickstart.sh
# trains, in a few minutes. $DATA_ROOT: any folder of images.
_base_ = [
    '../_base_/cmae_vit-b.py',
    '../_base_/adamw_4096.py',
    '../_base_/default_runtime.py',
]

data_root = '{{$DATA_ROOT:data/tiles}}'
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=128,
            num_layers=4,
            num_heads=4,
            feedforward_channels=512),
        img_size=64,
        patch_size=8),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4),
        projector=dict(hid_channels=512, out_channels=128)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=512))),
    target=dict(momentum=0.99))

target_pipeline = [
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(
                type='ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1)
        ]),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),
    dict(
        type='GaussianBlur', magnitude_range=(0.1, 1.0), magnitude_std='inf',
        prob=0.5),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='SeededInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='PretrainingDataset',
        data_root=data_root,
        pipeline=[
            dict(type='SeedDraws'),
            dict(type='LoadImageOrSkip'),
            dict(
                type='RandomResizedCrop',
                scale=72,
                crop_ratio_range=(0.2, 1.0),
                backend='cv2',
                interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5),
            dict(
                type='PixelShift',
                size=64,
                max_shift=8,
                canvas_size=72,
                target_pipeline=target_pipeline),
            dict(type='PackInputs'),
        ]))

max_iters = 300
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=128)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        T_max=max_iters - 100,
        begin=100,
        end=max_iters),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1))
log_processor = dict(by_epoch=False, window_size=20)
resume = False
