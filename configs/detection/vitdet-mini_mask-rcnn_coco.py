# ViTDet, Mask R-CNN on the small ViT of cmae_vit-mini_coco.py: 40 epochs,
# batch 4, on 2 CPU cores and few images; shows the whole path from the encoder
# to predictions. Random weights unless a checkpoint is named.
# Data: $DATA_ROOT/annotations/instances_{train,val}2017.json,
# $DATA_ROOT/images/{train,val}2017
# cmae train configs/detection/vitdet-mini_mask-rcnn_coco.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/mask-rcnn_vitdet-b.py',
    '../_base_/models/vit-mini_96.py',
    '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/vitdet_100e.py',
    '../_base_/detection_runtime.py',
]

data_root = '{{$DATA_ROOT:data/coco_mini}}'
image_size = (256, 256)

model = dict(
    data_preprocessor=dict(pad_size_divisor=256),
    backbone=dict(
        arch=dict(
            _delete_=True, global_attn_indexes=[1, 3], **_base_.vit_mini_96),
        img_size=256,
        drop_path_rate=0.,
        init_cfg=dict(checkpoint='random'),
        window_size=8),
    neck=dict(in_channels=96, out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, num_convs=1),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            _delete_=True,
            type='Shared2FCBBoxHead',
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0., 0., 0., 0.],
                target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(
                type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))

train_pipeline = _base_.train_pipeline
train_pipeline[4].update(  # RandomResize
    scale=image_size, ratio_range=(0.8, 1.25))
train_pipeline[5].crop_size = image_size  # RandomCrop
train_pipeline[6].min_gt_bbox_wh = (4, 4)  # FilterAnnotations
train_pipeline[7].size = image_size  # Pad
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size  # Resize
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img='images/train2017/'),
        filter_cfg=dict(min_size=1),
        pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img='images/val2017/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + '/annotations/instances_val2017.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.8))
auto_scale_lr = dict(base_batch_size=4)
train_cfg = dict(max_epochs=40, val_interval=40)
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
# Predictions drawn on the test images, in work_dir/<time>/predictions.
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=10),
    visualization=dict(draw=True, score_thr=0.3, test_out_dir='predictions'))
