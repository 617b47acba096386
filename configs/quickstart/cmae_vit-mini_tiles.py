# CMAE, a ViT of 4 layers on images of 64 pixels: 300 iterations of batch 128,
# a few minutes on 2 CPU cores. Used by tools/quickstart.sh.
# Data: $DATA_ROOT, any folder of images. For images other than 8-bit colours
# set image_stats, the file of `cmae stats $DATA_ROOT --out stats.json`.
# cmae train configs/quickstart/cmae_vit-mini_tiles.py
_base_ = [
    '../_base_/models/cmae_vit-b16.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/adamw_bs4096.py',
    '../_base_/pretrain_runtime.py',
]

data_root = '{{$DATA_ROOT:data/tiles}}'

model = dict(
    backbone=dict(arch='mini', img_size=64, patch_size=8),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4),
        projector=dict(hid_channels=512, out_channels=128)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=512))),
    target=dict(momentum=0.99))

# The recipe's views with less blur, for small images.
data_preprocessor = dict(
    size=64, max_shift=8, canvas_size=72, blur_sigma=(0.1, 1.0))
train_pipeline = [
    dict(
        type='LoadCanvas', size=72, crop_ratio_range=(0.2, 1.0),
        flip_prob=0.5),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    pin_memory=False,
    sampler=dict(type='SeededInfiniteSampler'),
    dataset=dict(data_root=data_root, pipeline=train_pipeline))

train_cfg = dict(type='IterBasedTrainLoop', max_iters=300)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=128)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        T_max=200,
        begin=100,
        end=300),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1))
log_processor = dict(by_epoch=False, window_size=20)
resume = False
