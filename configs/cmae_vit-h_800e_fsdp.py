# CMAE, ViT-H/14: cmae_vit-h_800e.py (800 epochs, batch 4096) with parameters,
# gradients and the optimizer's state shared out over all GPUs (torch's
# fully_shard; torch 2.6 or newer). Its checkpoints are ordinary ones.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# Four machines: NNODES=4 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/cmae_vit-h_800e_fsdp.py 8
_base_ = './cmae_vit-h_800e.py'

runner_type = 'mmpretrain.ResumableFlexibleRunner'
strategy = dict(type='FullyShardStrategy', sync_bn='torch')
