# Fine-tuning of a hybrid encoder of ViT-B's size, as ConvMAE's: 100 epochs,
# batch 1024. Both convolution stages learn at the rate of the stem.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/finetune/convvit-b_100e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/convvit-b16_classifier.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/transfer_runtime.py',
]
