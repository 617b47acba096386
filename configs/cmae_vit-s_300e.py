# CMAE, ViT-S/16: the released code's recipe, 300 epochs, batch 4096.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# tools/dist_train.sh configs/cmae_vit-s_300e.py 8
_base_ = './cmae_vit-b_300e.py'

# 384 wide; mmpretrain's 'small' is 768 wide.
model = dict(backbone=dict(arch='deit-small'))
