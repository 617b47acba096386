# UPerNet on the small ViT of cmae_vit-mini_coco.py: 40 epochs, batch 4, on 2
# CPU cores and few images; shows the whole path from the encoder to
# predictions. Random weights unless a checkpoint is named.
# Data: $DATA_ROOT/{images,semantic}/{train,val}2017, maps of category ids, and
# $DATA_ROOT/semantic/classes.json with their names.
# cmae train configs/segmentation/upernet-mini_coco.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/models/vit-mini_96.py',
    '../_base_/schedules/upernet_160k.py',
    '../_base_/segmentation_runtime.py',
]

data_root = '{{$DATA_ROOT:data/coco_mini}}'
crop_size = (160, 160)
norm_cfg = dict(type='BN')

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(_delete_=True, **_base_.vit_mini_96),
        img_size=160,
        drop_path_rate=0.,
        init_cfg=dict(checkpoint='random'),
        out_indices=[0, 1, 2, 3]),
    neck=dict(embed_dim=96, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[96] * 4, channels=64, num_classes=129, norm_cfg=norm_cfg),
    auxiliary_head=None,
    test_cfg=dict(crop_size=crop_size, stride=(120, 120)))

train_pipeline = [
    dict(type='mmpretrain.SeedDraws'),
    dict(type='LoadImageFromFile'),
    dict(type='LoadCategoryMap'),
    dict(
        type='RandomResize',
        scale=(640, 160),
        ratio_range=(0.8, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(640, 160), keep_ratio=True),
    dict(type='LoadCategoryMap'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='mmpretrain.SeededSampler', shuffle=True),
    dataset=dict(
        type='CategoryMapDataset',
        data_root=data_root,
        categories='semantic/classes.json',
        data_prefix=dict(
            img_path='images/train2017', seg_map_path='semantic/train2017'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CategoryMapDataset',
        data_root=data_root,
        categories='semantic/classes.json',
        data_prefix=dict(
            img_path='images/val2017', seg_map_path='semantic/val2017'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=0.8))
auto_scale_lr = dict(base_batch_size=4)
train_cfg = dict(
    _delete_=True, type='EpochBasedTrainLoop', max_epochs=40, val_interval=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=40,
        by_epoch=True,
        begin=0,
        end=40,
        convert_to_iter_based=True),
]
# Predictions drawn beside the labels on the test images, in
# work_dir/<time>/vis_data/vis_image.
default_hooks = dict(
    logger=dict(interval=8, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=10),
    visualization=dict(draw=True, interval=1))
log_processor = dict(by_epoch=True)
