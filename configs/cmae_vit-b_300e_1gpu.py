# CMAE, ViT-B/16: the recipe of cmae_vit-b_300e.py, 300 epochs, batch of 4096
# and all its negatives, on one GPU: the activations of 256 images at a time.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# cmae train configs/cmae_vit-b_300e_1gpu.py
_base_ = './cmae_vit-b_300e.py'

model = dict(micro_batch=256)
# A batch of canvases is 0.8 GB; each worker prefetches one.
train_dataloader = dict(batch_size=4096, prefetch_factor=1)
