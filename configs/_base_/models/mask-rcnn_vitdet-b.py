# Mask R-CNN on a plain ViT-B/16 with a simple feature pyramid (ViTDet), as
# differences to mmdetection's Mask R-CNN on a ResNet-50. Attention in windows
# of 14x14 except in 4 global blocks, relative positions, heads with LayerNorm.
# model.backbone.init_cfg.checkpoint: a CMAE checkpoint, or another file that
# TransferViTDet accepts.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferViTDet',
        arch='base',
        img_size=1024,
        patch_size=16,
        drop_path_rate=0.1,
        window_size=14,
        use_rel_pos=True,
        init_cfg=dict(type='Pretrained', checkpoint='')),
    neck=dict(type='mmpretrain.SimpleFPN', in_channels=768),
    rpn_head=dict(type='Float32RPNHead', num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
