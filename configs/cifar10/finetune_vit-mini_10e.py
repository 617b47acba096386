# Fine-tuning of cmae_vit-mini_20e.py's encoder on CIFAR-10: 10 epochs, batch
# 256, on 2 CPU cores; from random weights unless a checkpoint is named.
# Data: $DATA_ROOT/{train,test}/<class>/*.jpg
# cmae train configs/cifar10/finetune_vit-mini_10e.py --cfg-options \
#     model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/vit-b16_classifier.py',
    '../_base_/models/vit-mini_96.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/transfer_runtime.py',
]

data_root = '{{$DATA_ROOT:data/cifar10}}'
data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255])

# A small network needs no drop path, mixup, RandAugment or erasing.
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.vit_mini_96),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.,
        init_cfg=dict(checkpoint='random')),
    head=dict(num_classes=10, in_channels=96),
    train_cfg=None)

train_pipeline = [*_base_.train_pipeline[:4], dict(type='PackInputs')]
train_pipeline[2].update(  # RandomResizedCrop
    scale=32, crop_ratio_range=(0.4, 1.0), backend='cv2')
test_pipeline = [dict(type='LoadImage'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=500,
    num_workers=1,
    dataset=dict(
        data_root=data_root, data_prefix='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator

# ImageNet's rate, for a batch of 1024.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=10)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=1e-3, end=1)
param_scheduler[1].update(T_max=9, begin=1, end=10, eta_min=0.)
