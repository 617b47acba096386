# CMAE, ViT-S/16 (384 wide), released-code recipe, 300 epochs.
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_300e.py',
    '_base_/default_runtime.py',
]

# mmpretrain calls this ViT-S 'deit-small'; its own 'small' is 768 wide.
model = dict(backbone=dict(arch='deit-small'))
