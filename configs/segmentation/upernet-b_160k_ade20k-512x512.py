# UPerNet, ViT-B, ADE20K: crops of 512 pixels, 160,000 iterations, batch 16.
# Data: $DATA_ROOT/{images,annotations}/{training,validation}
# tools/dist_train.sh configs/segmentation/upernet-b_160k_ade20k-512x512.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/upernet_160k.py',
    '../_base_/segmentation_runtime.py',
]
