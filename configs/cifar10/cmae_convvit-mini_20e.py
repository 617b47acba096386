# CMAE, a hybrid encoder of cmae_vit-mini_20e.py's width on CIFAR-10: 20 epochs
# of about 2 minutes on 2 CPU cores, batch 256.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/cmae_convvit-mini_20e.py
_base_ = ['../_base_/models/convvit-mini_96.py', './cmae_vit-mini_20e.py']

# Stages at 1/2, 1/4 and 1/4 of the image: the plain ViT's 8x8 tokens.
model = dict(
    backbone=dict(
        _delete_=True,
        type='CMAEConvViT',
        arch=_base_.convvit_mini_96,
        img_size=32,
        patch_sizes=(2, 2, 1),
        mask_ratio=0.65,
        mask_block=2))
