# ViTDet, Mask R-CNN, ViT-B: a short schedule for one machine, 12 epochs, batch
# 16.
# Data: $DATA_ROOT/{annotations,train2017,val2017}
# tools/dist_train.sh configs/detection/vitdet-b_mask-rcnn_1x_coco.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vitdet-b_mask-rcnn_100e_coco.py'
train_dataloader = dict(batch_size=2)  # per GPU
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_epochs=12, val_interval=1)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 500
param_scheduler[1].update(end=12, milestones=[8, 11])
