# Fine-tuning of a ViT-B/16 pre-trained for 1600 epochs: half the rate, 100
# epochs, batch 1024.
# Data: $DATA_ROOT/{train,val}/<class>/*.jpg
# tools/dist_train.sh configs/finetune/vit-b_pt1600e_100e_in1k.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vit-b_pt300e_100e_in1k.py'
optim_wrapper = dict(optimizer=dict(lr=2.5e-4 * 1024 / 256))
