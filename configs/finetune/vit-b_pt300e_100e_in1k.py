# Fine-tuning of a ViT-B/16 pre-trained for 300 epochs: 100 epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/finetune/vit-b_pt300e_100e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/vit-b16_classifier.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/transfer_runtime.py',
]
