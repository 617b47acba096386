# CMAE, a small ViT on CIFAR-10, for 2 CPU cores: about 2 minutes an epoch.
# Data: $DATA_ROOT/train/<class>/*.jpg
_base_ = [
    '../_base_/cmae_vit-b.py',
    '../_base_/adamw_4096.py',
    '../_base_/default_runtime.py',
]

data_root = '{{$DATA_ROOT:data/cifar10}}'
data_preprocessor = dict(
    type='TwoViewDataPreprocessor',
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True,
    size=32,
    max_shift=4,
    canvas_size=36,
    blur_sigma=(0.1, 0.6))

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=384),
        img_size=32,
        patch_size=4),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=4),
        projector=dict(hid_channels=512, out_channels=128)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=512))),
    target=dict(momentum=0.99))

train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='PretrainingDataset',
        data_root=data_root,
        pipeline=[
            dict(type='LoadCanvas', size=36, crop_ratio_range=(0.2, 1.0)),
            dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
        ]))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=18,
        by_epoch=True,
        begin=2,
        end=20,
        convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))

# Labelled images for `cmae knn` etc. are $DATA_ROOT/{train,test}, as they are.
evaluation = dict(short_side=32)
