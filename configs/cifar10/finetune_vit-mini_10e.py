# Fine-tuning of cmae_vit-mini_20e.py's encoder, 10 epochs; from random weights
# unless model.backbone.init_cfg.checkpoint says otherwise.
# Data: $DATA_ROOT/{train,test}/<class>/*.jpg
_base_ = [
    '../_base_/finetune_vit-b.py',
    '../_base_/finetune_imagenet.py',
    '../_base_/finetune_100e.py',
    '../_base_/transfer_runtime.py',
]

data_root = '{{$DATA_ROOT:data/cifar10}}'
data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255])

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=384),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.,
        init_cfg=dict(checkpoint='random')),
    # Too small a network for what keeps large ones from overfitting.
    head=dict(num_classes=10, in_channels=96),
    train_cfg=None)

train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.4, 1.0),
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=500,
    num_workers=1,
    dataset=dict(
        data_root=data_root, data_prefix='test', pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=0.8))
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=10)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=9,
        by_epoch=True,
        begin=1,
        end=10,
        convert_to_iter_based=True),
]
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator
