# Mask R-CNN on the hybrid encoder: its three stages and a max-pooled third one
# into mmdetection's FPN. In the last stage attention is in windows of 16x16
# except in 4 global blocks, with relative positions. Heads of the plain ViT.
# model.backbone.init_cfg.checkpoint: a CMAE checkpoint, or another file that
# TransferConvViTDet accepts.
_base_ = './mask-rcnn_vitdet-b.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferConvViTDet',
        arch='base',
        img_size=1024,
        patch_sizes=(4, 2, 2),
        drop_path_rate=0.1,
        window_size=16,
        use_rel_pos=True,
        init_cfg=dict(type='Pretrained', checkpoint='')),
    neck=dict(
        _delete_=True,
        type='Float32FPN',
        in_channels=[256, 384, 768, 768],
        out_channels=256,
        num_outs=5,
        norm_cfg=_base_.norm_cfg))
