# UPerNet on the small hybrid encoder of cmae_convvit-mini_coco.py: 40 epochs,
# batch 4, on 2 CPU cores and few images; shows the whole path from the encoder
# to predictions. Random weights unless a checkpoint is named.
# Data: $DATA_ROOT/{images,semantic}/{train,val}2017, maps of category ids, and
# $DATA_ROOT/semantic/classes.json with their names.
# cmae train configs/segmentation/upernet-convvit-mini_coco.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = ['./upernet-mini_coco.py', '../_base_/models/convvit-mini_96.py']

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferConvViTDet',
        arch=dict(global_attn_indexes=[], **_base_.convvit_mini_96),
        img_size=160,
        patch_sizes=(4, 2, 2),
        window_size=0,
        init_cfg=dict(type='Pretrained', checkpoint='random')),
    neck=None,
    decode_head=dict(in_channels=[32, 64, 96, 96]))
