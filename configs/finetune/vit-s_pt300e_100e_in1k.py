# Fine-tuning of a ViT-S/16: ViT-B's schedule, 100 epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/finetune/vit-s_pt300e_100e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vit-b_pt300e_100e_in1k.py'
model = dict(
    backbone=dict(arch='deit-small'),  # the 384 wide one
    head=dict(in_channels=384))
