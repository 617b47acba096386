# Linear probe of cmae_convvit-mini_20e.py's encoder on CIFAR-10, on tokens
# pooled, then normalised: 10 epochs, batch 256, on 2 CPU cores; random
# weights unless a checkpoint is named.
# Data: $DATA_ROOT/{train,test}/<class>/*.jpg
# cmae train configs/cifar10/linear_convvit-mini_10e.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = ['../_base_/models/convvit-mini_96.py', './linear_vit-mini_10e.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='TransferConvViT',
        arch=_base_.convvit_mini_96,
        img_size=32,
        patch_sizes=(2, 2, 1),
        frozen_stages=3,
        init_cfg=dict(type='Pretrained', checkpoint='random')))
