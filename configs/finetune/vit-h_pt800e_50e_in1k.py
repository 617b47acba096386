# Fine-tuning of a ViT-H/14: MAE's schedule, 50 epochs, batch 1024.
_base_ = [
    '../_base_/finetune_vit-b.py',
    '../_base_/finetune_imagenet.py',
    '../_base_/finetune_50e.py',
    '../_base_/transfer_runtime.py',
]
model = dict(
    backbone=dict(arch='huge', patch_size=14, drop_path_rate=0.3),
    head=dict(in_channels=1280))
train_dataloader = dict(batch_size=32)  # 32 GPUs make the recipe's 1024
