# UPerNet, ViT-B, ADE20K: crops of 640 pixels, 160,000 iterations, batch 16.
# Data: $DATA_ROOT/{images,annotations}/{training,validation}
# tools/dist_train.sh configs/segmentation/upernet-b_160k_ade20k-640x640.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './upernet-b_160k_ade20k-512x512.py'

crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=640),
    test_cfg=dict(crop_size=crop_size, stride=(426, 426)))

train_pipeline = _base_.train_pipeline
train_pipeline[3].scale = (2560, 640)  # RandomResize
train_pipeline[4].crop_size = crop_size  # RandomCrop
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2560, 640)  # Resize
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
