# ViTDet, Mask R-CNN, ViT-L: 100 epochs, batch 64.
_base_ = './vitdet-b_mask-rcnn_100e_coco.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4),
    neck=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
train_dataloader = dict(batch_size=1)  # 64 GPUs make the recipe's 64
