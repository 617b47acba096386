# Fine-tuning of a ViT-L/16: MAE's schedule, 50 epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# Four machines: NNODES=4 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh configs/finetune/vit-l_pt800e_50e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/vit-b16_classifier.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_50e.py',
    '../_base_/transfer_runtime.py',
]
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    head=dict(in_channels=1024))
train_dataloader = dict(batch_size=32)  # per GPU; 32 GPUs make 1024
