# UPerNet, ViT-B, ADE20K, with relative positions that start at zero beside the
# absolute ones: crops of 512 pixels, 160,000 iterations, batch 16.
# Data: $DATA_ROOT/{images,annotations}/{training,validation}
# tools/dist_train.sh \
#     configs/segmentation/upernet-b_rel-pos_160k_ade20k-512x512.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
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
