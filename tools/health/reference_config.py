"""The healthy run of docs/health.md.

A ViT of 3 layers, 64 wide, on images of 32 pixels; 120 iterations of batch
64. reference_runs.py trains it, and breaks it in several ways.
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

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = 36
train_pipeline[4].update(size=32, max_shift=4, canvas_size=36)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline))

train_cfg = dict(max_iters=120)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 20
param_scheduler[1].update(T_max=100, begin=20, end=120)

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
        type='KNNHook', interval=60, by_epoch=False, ks=(20, ), num_workers=0)
]
default_hooks = dict(
    logger=dict(interval=5), checkpoint=dict(interval=60))
log_processor = dict(window_size=5)
resume = True
