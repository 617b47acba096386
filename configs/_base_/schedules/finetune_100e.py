# AdamW with layer decay, 100 epochs, batch 1024 (`--auto-scale-lr` adapts the
# learning rate to another). The rate is for encoders of 300 epochs.
optim_wrapper = dict(
    type='AutoAmpOptimWrapper',
    dtype='bfloat16',
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(
        type='AdamW',
        lr=5e-4 * 1024 / 256,
        betas=(0.9, 0.999),
        weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.), pos_embed=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=1024)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True),
]
