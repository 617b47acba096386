# Fine-tuning of a ViT-H/14: MAE's schedule, 50 epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# Four machines: NNODES=4 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/finetune/vit-h_pt800e_50e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vit-l_pt800e_50e_in1k.py'
model = dict(
    backbone=dict(arch='huge', patch_size=14, drop_path_rate=0.3),
    head=dict(in_channels=1280))
