# AdamW with layer decay, 160,000 iterations, batch 16 (`--auto-scale-lr`
# adapts the learning rate to another).
optim_wrapper = dict(
    type='mmpretrain.AutoAmpOptimWrapper',
    dtype='bfloat16',
    constructor='mmpretrain.BackboneLayerDecayConstructor',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.), pos_embed=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=16)

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.,
        by_epoch=False,
        begin=1500,
        end=160000),
]
