# CMAE, ViT-Tiny with patches of 4 pixels on CIFAR-10: 40 epochs of batch 512,
# for one GPU.
# Data: $DATA_ROOT/train/<class>/*.jpg; for evaluation test/<class>/*.jpg.
# cmae train configs/cifar10/cmae_vit-tiny_40e.py
_base_ = './cmae_vit-mini_20e.py'

model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=192,
            num_layers=12,
            num_heads=3,
            feedforward_channels=768)),
    neck=dict(
        pixel_decoder=dict(
            decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4),
        feature_decoder=dict(
            decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4),
        projector=dict(hid_channels=1024, out_channels=256)),
    head=dict(contrastive=dict(predictor=dict(hid_channels=1024))),
    target=dict(momentum=0.996))

train_dataloader = dict(batch_size=512, num_workers=4, pin_memory=True)
train_cfg = dict(max_epochs=40)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=4)
param_scheduler[1].update(T_max=36, begin=4, end=40)
default_hooks = dict(checkpoint=dict(interval=10))
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=20, num_workers=4)
