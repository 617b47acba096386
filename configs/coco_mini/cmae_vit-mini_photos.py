# CMAE, the small ViT with patches of 8 pixels on crops of 64 pixels of some
# hundred photographs, for dense probes: 1000 iterations of batch 64, about 6
# minutes of one CPU core.
# Data: $DATA_ROOT, any folder of photographs.
# cmae train configs/coco_mini/cmae_vit-mini_photos.py
_base_ = './cmae_vit-mini_coco.py'

data_root = '{{$DATA_ROOT:data/photos}}'
data_preprocessor = dict(size=64, max_shift=8, canvas_size=72)
model = dict(backbone=dict(img_size=64, patch_size=8))

# Small crops, of which a patch shows what it does when whole photographs of
# 128 pixels are probed.
train_pipeline = [
    dict(type='LoadCanvas', size=72, crop_ratio_range=(0.1, 1.0)),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, split='', pipeline=train_pipeline))

train_cfg = dict(max_iters=1000)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=900, end=1000)
