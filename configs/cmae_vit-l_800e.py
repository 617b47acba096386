# CMAE, ViT-L/16: the released code's recipe, 800 epochs, batch 4096.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# Two machines: NNODES=2 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/cmae_vit-l_800e.py 8
_base_ = './cmae_vit-b_800e.py'

model = dict(backbone=dict(arch='large'))
train_dataloader = dict(batch_size=256)  # per GPU; 16 GPUs make 4096
