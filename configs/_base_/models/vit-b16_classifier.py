# A classifier on a pre-trained ViT-B/16: patch tokens pooled, then normalised.
# model.backbone.init_cfg.checkpoint: a CMAE checkpoint, or another file that
# TransferViT accepts.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TransferViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='')),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5)),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]))
