# AdamW with layer decay, 100 epochs, batch 64 (`--auto-scale-lr` adapts the
# learning rate to another).
optim_wrapper = dict(
    type='mmpretrain.AutoAmpOptimWrapper',
    dtype='bfloat16',
    constructor='mmpretrain.BackboneLayerDecayConstructor',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.,
        custom_keys=dict(pos_embed=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=64)

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=100, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=100,
        milestones=[89, 96],
        gamma=0.1),
]
