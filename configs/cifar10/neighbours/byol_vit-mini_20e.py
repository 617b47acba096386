# BYOL of mmpretrain, a neighbour of cmae_vit-mini_20e.py: its encoder,
# optimizer, range of crops, 20 epochs, batch 256. Views, momentum and widths
# are those of mocov3_vit-mini_20e.py; projector, predictor and loss are BYOL's
# own, without negatives. Its rate is CMAE's and is not tuned.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/neighbours/byol_vit-mini_20e.py
_base_ = ['./mocov3_vit-mini_20e.py']

byol_mlp = dict(
    type='NonLinearNeck',
    hid_channels=512,
    out_channels=128,
    num_layers=2,
    with_bias=True,
    with_last_bn=False,
    with_last_bias=True,
    norm_cfg=dict(type='BN1d'))  # across GPUs by sync_bn
model = dict(
    type='BYOL',
    backbone=dict(stop_grad_conv1=False),
    neck=dict(
        _delete_=True, in_channels=96, with_avg_pool=True, **byol_mlp),
    head=dict(
        _delete_=True,
        type='LatentPredictHead',
        predictor=dict(in_channels=128, with_avg_pool=False, **byol_mlp),
        loss=dict(type='CosineSimilarityLoss')))
