# CMAE, ViT-L/16, released-code recipe, 800 epochs.
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_800e.py',
    '_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='large'))
train_dataloader = dict(batch_size=256)  # per GPU; 16 GPUs make 4096
