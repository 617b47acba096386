# Fine-tuning of a ViT-S/16: ViT-B's schedule.
_base_ = './vit-b_pt300e_100e_in1k.py'
model = dict(
    backbone=dict(arch='deit-small'),  # the 384 wide one
    head=dict(in_channels=384))
