# UPerNet, hybrid encoder of ViT-B's size, ADE20K, as ConvMAE's: crops of 512
# pixels, 160,000 iterations, batch 16.
# Data: $DATA_ROOT/{images,annotations}/{training,validation}
# tools/dist_train.sh \
#     configs/segmentation/upernet-convvit-b_160k_ade20k-512x512.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/upernet_convvit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/upernet_160k.py',
    '../_base_/segmentation_runtime.py',
]
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
