# CMAE, an ablation of cmae_vit-mini_tiles.py: colour augmentation of the
# online view too, and not of the target view alone; 300 iterations of batch
# 128.
# Data: $DATA_ROOT, any folder of images.
# cmae train configs/quickstart/ablations/cmae_vit-mini_colour-both_tiles.py
_base_ = '../cmae_vit-mini_tiles.py'

train_pipeline = _base_.train_pipeline
train_pipeline[4].online_pipeline = _base_.target_pipeline
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
