# Linear probe of cmae_vit-mini_20e.py's encoder, 10 epochs, on patch tokens
# pooled, then normalised; of random weights unless
# model.backbone.init_cfg.checkpoint says otherwise.
_base_ = './finetune_vit-mini_10e.py'

data_preprocessor = dict(to_onehot=False)
model = dict(
    backbone=dict(frozen_stages=4),
    neck=dict(type='ClsBatchNormNeck', input_features=96),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01)))

optim_wrapper = dict(
    _delete_=True,
    type='AutoAmpOptimWrapper',
    dtype='float32',
    # LARS steps are shares of the weights' norm: few steps need a large rate.
    optimizer=dict(type='LARS', lr=5., momentum=0.9, weight_decay=0.),
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lars_exclude=True))))
