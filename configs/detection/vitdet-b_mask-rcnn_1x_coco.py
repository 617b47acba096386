# ViTDet, Mask R-CNN, ViT-B, a short schedule for one node: 12 epochs, batch 16
# (8 GPUs).
_base_ = './vitdet-b_mask-rcnn_100e_coco.py'
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=12,
        milestones=[8, 11],
        gamma=0.1),
]
