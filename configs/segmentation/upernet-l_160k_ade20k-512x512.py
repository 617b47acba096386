# UPerNet, ViT-L, ADE20K: features after blocks 7, 11, 15, 23.
_base_ = './upernet-b_160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.2, out_indices=[7, 11, 15, 23]),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
