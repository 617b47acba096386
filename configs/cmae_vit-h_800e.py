# CMAE, ViT-H/14: the released code's recipe, 800 epochs, batch 4096.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# Four machines: NNODES=4 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/cmae_vit-h_800e.py 8
_base_ = './cmae_vit-b_800e.py'

# 16x16 patches of 14 pixels: 64 blocks of 2x2, 22 of them visible.
model = dict(backbone=dict(arch='huge', patch_size=14))
train_dataloader = dict(batch_size=128)  # per GPU; 32 GPUs make 4096
