# CMAE, ViT-H/14: the recipe of cmae_vit-h_800e.py, 800 epochs, batch 4096,
# with parameters, gradients and optimizer state sharded over the GPUs (FSDP2).
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# Four machines: NNODES=4 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/cmae_vit-h_800e_fsdp.py 8
_base_ = './cmae_vit-h_800e.py'

runner_type = 'mmpretrain.ShardedRunner'
strategy = dict(type='FullyShardStrategy')
