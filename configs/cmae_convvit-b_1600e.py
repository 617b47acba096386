# CMAE, hybrid encoder (convolutional stem) of ViT-B's size: the recipe of
# ViT-B/16, 1600 epochs, batch 4096.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# tools/dist_train.sh configs/cmae_convvit-b_1600e.py 8
_base_ = [
    '_base_/models/cmae_convvit-b16.py',
    '_base_/datasets/imagenet_pretrain.py',
    '_base_/schedules/adamw_bs4096.py',
    '_base_/schedules/cosine_1600e.py',
    '_base_/pretrain_runtime.py',
]
