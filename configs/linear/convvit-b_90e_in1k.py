# Linear probe of a hybrid encoder of ViT-B's size: a BatchNorm without affine
# parameters and a linear layer on the frozen encoder's tokens, pooled, then
# normalised; LARS, 90 epochs, batch 16384.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/linear/convvit-b_90e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vit-b_90e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TransferConvViT',
        arch='base',
        img_size=224,
        patch_sizes=(4, 2, 2),
        frozen_stages=3,
        init_cfg=dict(type='Pretrained', checkpoint='')))
