# AdamW for a batch of 4096; `--auto-scale-lr` scales it to other batches.
optim_wrapper = dict(
    type='AutoAmpOptimWrapper',
    dtype='bfloat16',  # 'float16' or 'float32' work as well
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(
        type='AdamW',
        lr=1.5e-4 * 4096 / 256,
        betas=(0.9, 0.95),
        weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.),
            mask_token=dict(decay_mult=0.),
            cls_token=dict(decay_mult=0.))))
auto_scale_lr = dict(base_batch_size=4096)
