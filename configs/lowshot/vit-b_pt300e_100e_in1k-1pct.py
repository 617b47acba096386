# Fine-tuning of a ViT-B/16 with 1% of the labels:
# `cmae splits $DATA_ROOT` draws them.
_base_ = '../finetune/vit-b_pt300e_100e_in1k.py'
train_dataloader = dict(dataset=dict(ann_file='splits/1pct_seed0.txt'))
