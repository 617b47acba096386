# CMAE with a ViT-B/16, as the released code trains it: blocks of 2x2 patches
# masked at 65%, InfoNCE scaled by 2 tau. Projector and predictor are those of
# CMAENeck and CMAEContrastiveHead: 768-1536-256 and 256-1536-256.
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
            decoder_embed_dim=512, decoder_depth=2, decoder_num_heads=16)),
    head=dict(
        type='CMAEHead',
        contrastive=dict(
            type='CMAEContrastiveHead',
            loss_style='infonce',
            temperature=0.07,
            loss_weight=1.0,
            scale_by_temperature=True)),
    target=dict(
        momentum=0.996, with_cls_token=True, final_norm=False, mask_ratio=0.))
