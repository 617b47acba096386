"""The healthy run of docs/health.md.

A ViT of 3 layers, 64 wide, on images of 32 pixels; 1,000 iterations of
batch 64. reference_runs.py trains it, and breaks it in several ways.
Data: $DATA_ROOT, tiles that the tool makes.
"""
_base_ = ['../../configs/quickstart/cmae_vit-mini_tiles.py']

data_root = '{{$DATA_ROOT:data/health/tiles}}'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=64,
            num_layers=3,
            num_heads=2,
            feedforward_channels=256),
        img_size=32,
        patch_size=8,
        mask_block=1),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4),
        projector=dict(hid_channels=256, out_channels=64)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=256))))

# Views are made of whole batches, as in the configs for ImageNet.
data_preprocessor = dict(
    _delete_=True,
    type='TwoViewDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    size=32,
    max_shift=4,
    canvas_size=36,
    blur_sigma=(0.1, 0.6))
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type='LoadCanvas', size=36),
            dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
        ]))

train_cfg = dict(max_iters=1000)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 100
param_scheduler[1].update(T_max=900, begin=100, end=1000)

# k-NN among the photographs that the tiles are cut from.
evaluation = dict(
    train=dict(
        type='LabelledDataset', data_root='data/health/tiles',
        data_prefix='train'),
    val=dict(
        type='LabelledDataset', data_root='data/health/tiles',
        data_prefix='val'),
    short_side=32)
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='KNNHook', interval=100, by_epoch=False, ks=(20, ), num_workers=0)
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=500))
log_processor = dict(window_size=10)
resume = True
