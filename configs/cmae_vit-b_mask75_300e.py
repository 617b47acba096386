# CMAE, ViT-B/16: the paper's text, 300 epochs, batch 4096. Single patches
# masked at 75%, L = L_r + L_c.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# tools/dist_train.sh configs/cmae_vit-b_mask75_300e.py 8
_base_ = './cmae_vit-b_300e.py'

model = dict(
    backbone=dict(mask_ratio=0.75, mask_block=1),
    head=dict(contrastive=dict(scale_by_temperature=False)))
