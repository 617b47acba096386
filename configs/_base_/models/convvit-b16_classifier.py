# A classifier on a pre-trained hybrid encoder: tokens pooled, then normalised;
# without fusion layers and final norm.
# model.backbone.init_cfg.checkpoint: a CMAE checkpoint, or another file that
# TransferConvViT accepts.
_base_ = './vit-b16_classifier.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='TransferConvViT',
        arch='base',
        img_size=224,
        patch_sizes=(4, 2, 2),
        drop_path_rate=0.1,
        out_type='avg_featmap',
        init_cfg=dict(type='Pretrained', checkpoint='')))
