# CMAE, ViT-H/14, released-code recipe, 800 epochs.
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_800e.py',
    '_base_/default_runtime.py',
]

# 16x16 patches of 14 pixels: 64 blocks of 2x2, 22 of them visible.
model = dict(backbone=dict(arch='huge', patch_size=14))
train_dataloader = dict(batch_size=128)  # per GPU; 32 GPUs make 4096
