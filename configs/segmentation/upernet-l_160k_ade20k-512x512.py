# UPerNet, ViT-L, ADE20K, on features after blocks 7, 11, 15, 23: crops of 512
# pixels, 160,000 iterations, batch 16.
# Data: $DATA_ROOT/{images,annotations}/{training,validation}
# tools/dist_train.sh configs/segmentation/upernet-l_160k_ade20k-512x512.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './upernet-b_160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.2, out_indices=[7, 11, 15, 23]),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
