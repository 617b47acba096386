# Mask R-CNN on the small hybrid encoder of cmae_convvit-mini_coco.py: 40
# epochs, batch 4, on 2 CPU cores and few images; shows the whole path from the
# encoder to predictions. Random weights unless a checkpoint is named.
# Data: $DATA_ROOT/annotations/instances_{train,val}2017.json,
# $DATA_ROOT/images/{train,val}2017
# cmae train configs/detection/convvit-mini_mask-rcnn_coco.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = [
    './vitdet-mini_mask-rcnn_coco.py', '../_base_/models/convvit-mini_96.py'
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferConvViTDet',
        arch=dict(global_attn_indexes=[0, 2], **_base_.convvit_mini_96),
        img_size=256,
        patch_sizes=(4, 2, 2),
        window_size=8,
        init_cfg=dict(type='Pretrained', checkpoint='random')),
    neck=dict(
        _delete_=True,
        type='Float32FPN',
        in_channels=[32, 64, 96, 96],
        out_channels=64,
        num_outs=5,
        norm_cfg=_base_.norm_cfg))
