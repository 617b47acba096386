# Fine-tuning of a ViT-B/16 pre-trained for 300 epochs: 100 epochs, batch
# 1024.
_base_ = [
    '../_base_/finetune_vit-b.py',
    '../_base_/finetune_imagenet.py',
    '../_base_/finetune_100e.py',
    '../_base_/transfer_runtime.py',
]
