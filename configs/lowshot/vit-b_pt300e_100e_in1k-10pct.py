# Fine-tuning of a ViT-B/16 with 10% of the labels, which `cmae splits
# $DATA_ROOT` draws: 100 epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg, splits/10pct_seed0.txt
# tools/dist_train.sh configs/lowshot/vit-b_pt300e_100e_in1k-10pct.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = '../finetune/vit-b_pt300e_100e_in1k.py'
train_dataloader = dict(dataset=dict(ann_file='splits/10pct_seed0.txt'))
