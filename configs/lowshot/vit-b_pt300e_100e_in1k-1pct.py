# Fine-tuning of a ViT-B/16 with 1% of the labels: 100 epochs, batch 1024.
# `cmae splits $DATA_ROOT` draws them.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg, splits/1pct_seed0.txt
# tools/dist_train.sh configs/lowshot/vit-b_pt300e_100e_in1k-1pct.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = '../finetune/vit-b_pt300e_100e_in1k.py'
train_dataloader = dict(dataset=dict(ann_file='splits/1pct_seed0.txt'))
