# Linear probe of a ViT-B/16, as MAE's: a BatchNorm without affine parameters
# and a linear layer on the frozen encoder's class token, after its norm; LARS,
# 90 epochs, batch 16384. Patch tokens pooled, then normalised, in place of the
# class token: model.backbone.out_type=avg_featmap
# model.backbone.final_norm=False.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/linear/vit-b_90e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/vit-b16_classifier.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/transfer_runtime.py',
]

data_preprocessor = dict(to_onehot=False)
model = dict(
    backbone=dict(
        drop_path_rate=0.,
        out_type='cls_token',
        final_norm=True,
        frozen_stages=12),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(std=0.01)),
    train_cfg=None)

# Crop and flip only.
train_pipeline = [*_base_.train_pipeline[:4], dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2048,  # per GPU; 8 GPUs make the recipe's 16384
    dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    type='AutoAmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.),
    # LARS scales the rate of matrices only.
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lars_exclude=True))))
auto_scale_lr = dict(base_batch_size=16384)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90, val_interval=1)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=80,
        by_epoch=True,
        begin=10,
        end=90,
        convert_to_iter_based=True),
]
