# UPerNet, ViT-B, ADE20K: 160,000 iterations, batch 16.
_base_ = [
    '../_base_/upernet_vit-b.py',
    '../_base_/ade20k_512.py',
    '../_base_/seg_adamw_160k.py',
    '../_base_/seg_runtime.py',
]
