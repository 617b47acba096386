# CMAE, the small hybrid encoder on a few photographs: 500 iterations of batch
# 64, on 2 CPU cores.
# Data: $DATA_ROOT/images/train2017/*.jpg
# cmae train configs/coco_mini/cmae_convvit-mini_coco.py
_base_ = ['../_base_/models/convvit-mini_96.py', './cmae_vit-mini_coco.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMAEConvViT',
        arch=_base_.convvit_mini_96,
        img_size=128,
        patch_sizes=(4, 2, 2),
        mask_ratio=0.65,
        mask_block=2))
