# UPerNet, ViT-B, ADE20K, with relative positions that start at zero.
_base_ = './upernet-b_160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TransferViTDet',
        arch='base',
        img_size=512,
        patch_size=16,
        drop_path_rate=0.1,
        window_size=0,  # attention over the whole crop in all blocks
        use_rel_pos=True,
        out_indices=[3, 5, 7, 11],
        init_cfg=dict(type='Pretrained', checkpoint='')))
