# CMAE, a ViT of 4 layers on CIFAR-10: 20 epochs of about 2 minutes on 2 CPU
# cores, batch 256.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/cmae_vit-mini_20e.py
_base_ = [
    '../_base_/models/cmae_vit-b16.py',
    '../_base_/models/vit-mini_96.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/adamw_bs4096.py',
    '../_base_/schedules/cosine_100e.py',
    '../_base_/pretrain_runtime.py',
]

data_root = '{{$DATA_ROOT:data/cifar10}}'
data_preprocessor = dict(
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    size=32,
    max_shift=4,
    canvas_size=36,
    blur_sigma=(0.1, 0.6))

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.vit_mini_96),
        img_size=32,
        patch_size=4),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=4),
        projector=dict(hid_channels=512, out_channels=128)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=512))),
    target=dict(momentum=0.99))

train_pipeline = _base_.train_pipeline
train_pipeline[0].size = 36  # LoadCanvas
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    pin_memory=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline))

train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=1e-3, end=2)
param_scheduler[1].update(T_max=18, begin=2, end=20)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))

# k-NN and the probes use unresized images.
evaluation = dict(short_side=32)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='KNNHook', interval=5, num_workers=0),
]
