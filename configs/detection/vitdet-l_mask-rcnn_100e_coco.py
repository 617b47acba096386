# ViTDet, Mask R-CNN, ViT-L: images of 1024 pixels, 100 epochs, batch 64.
# Data: $DATA_ROOT/{annotations,train2017,val2017}
# Eight machines: NNODES=8 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/detection/vitdet-l_mask-rcnn_100e_coco.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vitdet-b_mask-rcnn_100e_coco.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4),
    neck=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
train_dataloader = dict(batch_size=1)  # per GPU; 64 GPUs make the recipe's 64
