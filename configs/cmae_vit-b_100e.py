# CMAE, ViT-B/16, released-code recipe, 100 epochs, batch 4096 (8 GPUs).
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_100e.py',
    '_base_/default_runtime.py',
]
