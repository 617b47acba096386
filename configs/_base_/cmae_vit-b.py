# CMAE, ViT-B/16, as the released code trains it: 2x2 blocks at 65%, InfoNCE
# scaled by 2 tau.
model = dict(
    type='CMAE',
    backbone=dict(
        type='CMAEViT',
        arch='base',
        img_size=224,
        patch_size=16,
        mask_ratio=0.65,
        mask_block=2),
    neck=dict(
        type='CMAENeck',
        pixel_decoder=dict(
            decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16),
        feature_decoder=dict(
            decoder_embed_dim=512, decoder_depth=2, decoder_num_heads=16),
        projector=dict(
            type='NonLinearNeck',
            hid_channels=1536,
            out_channels=256,
            with_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d', eps=1e-6))),
    head=dict(
        type='CMAEHead',
        contrastive=dict(
            type='CMAEContrastiveHead',
            loss_style='infonce',
            temperature=0.07,
            loss_weight=1.0,
            scale_by_temperature=True,
            predictor=dict(
                type='NonLinearNeck',
                hid_channels=1536,
                with_bias=True,
                with_last_bn=False,
                with_avg_pool=False,
                norm_cfg=dict(type='BN1d', eps=1e-6)))),
    target=dict(
        momentum=0.996, with_cls_token=True, final_norm=False, mask_ratio=0.))
