# Linear probe of cmae_vit-mini_20e.py's encoder on CIFAR-10, on patch tokens
# pooled, then normalised: 10 epochs, batch 256, on 2 CPU cores; random weights
# unless a checkpoint is named.
# Data: $DATA_ROOT/{train,test}/<class>/*.jpg
# cmae train configs/cifar10/linear_vit-mini_10e.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = './finetune_vit-mini_10e.py'

data_preprocessor = dict(to_onehot=False)
model = dict(
    backbone=dict(frozen_stages=4),
    neck=dict(type='ClsBatchNormNeck', input_features=96),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(std=0.01)))

optim_wrapper = dict(
    _delete_=True,
    type='AutoAmpOptimWrapper',
    dtype='float32',
    # LARS steps are proportional to the norm of the weights: few steps need a
    # large rate.
    optimizer=dict(type='LARS', lr=5., momentum=0.9, weight_decay=0.),
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lars_exclude=True))))
