# CMAE, ViT-B/16, the paper's text: single patches at 75%, L = L_r + L_c.
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_300e.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(mask_ratio=0.75, mask_block=1),
    head=dict(contrastive=dict(scale_by_temperature=False)))
