# CMAE, a ViT of 4 layers, width 96 and patches of 8 pixels, on 5,000 images of
# 64 pixels: 400 iterations of batch 64, some minutes of one CPU core.
# Data: $DATA_ROOT/train/<class>/*; for evaluation val/<class>/*.
# cmae train configs/tiny_imagenet/cmae_vit-mini_400i.py
_base_ = [
    '../quickstart/cmae_vit-mini_tiles.py',
    '../_base_/models/vit-mini_96.py',
]

data_root = '{{$DATA_ROOT:data/tiny_imagenet}}'
model = dict(backbone=dict(arch=dict(_delete_=True, **_base_.vit_mini_96)))
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root))
train_cfg = dict(max_iters=400)
optim_wrapper = dict(optimizer=dict(lr=1.4e-3))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 50
param_scheduler[1].update(begin=50, T_max=350, end=400)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=200))
evaluation = dict(short_side=64)  # k-NN and probes use unresized images
