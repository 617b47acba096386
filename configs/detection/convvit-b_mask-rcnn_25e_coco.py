# Mask R-CNN, hybrid encoder of ViT-B's size: images of 1024 pixels, 25 epochs,
# batch 32, as in ConvMAE except for ViTDet's layer decay.
# Data: $DATA_ROOT/{annotations,train2017,val2017}
# tools/dist_train.sh configs/detection/convvit-b_mask-rcnn_25e_coco.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/mask-rcnn_convvit-b.py',
    '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/vitdet_100e.py',
    '../_base_/detection_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(lr=8e-5),
    paramwise_cfg=dict(custom_keys=dict(rel_pos=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=32)
train_cfg = dict(max_epochs=25, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        T_max=25,
        by_epoch=True,
        begin=0,
        end=25,
        convert_to_iter_based=True),
]
