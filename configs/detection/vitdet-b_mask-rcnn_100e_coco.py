# ViTDet, Mask R-CNN, ViT-B: images of 1024 pixels, 100 epochs, batch 64.
# Data: $DATA_ROOT/{annotations,train2017,val2017}
# Two machines: NNODES=2 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/detection/vitdet-b_mask-rcnn_100e_coco.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/mask-rcnn_vitdet-b.py',
    '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/vitdet_100e.py',
    '../_base_/detection_runtime.py',
]
