# CMAE with the hybrid encoder: two stages of masked convolution blocks at 1/4
# and 1/8 of the image, then 11 transformer blocks at 1/16. The rest is that of
# ViT-B/16, without a class token.
_base_ = './cmae_vit-b16.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='CMAEConvViT',
        arch='base',
        img_size=224,
        patch_sizes=(4, 2, 2),
        mask_ratio=0.65,
        mask_block=2),
    # the target fuses its stages as the online encoder does
    target=dict(with_fusion=True))
