# UPerNet on the hybrid encoder's three stages and a max-pooled third one, with
# attention over the whole crop and relative positions.
# model.backbone.init_cfg.checkpoint: a CMAE checkpoint, or another file that
# TransferConvViTDet accepts.
_base_ = './upernet_vit-b16.py'
model = dict(
    # Images of other sizes are padded to whole cells of the coarsest map.
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferConvViTDet',
        arch='base',
        img_size=512,
        patch_sizes=(4, 2, 2),
        drop_path_rate=0.2,
        window_size=0,
        use_rel_pos=True,
        init_cfg=dict(type='Pretrained', checkpoint='')),
    neck=None,
    decode_head=dict(in_channels=[256, 384, 768, 768]))
