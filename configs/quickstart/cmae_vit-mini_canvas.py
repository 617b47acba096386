# CMAE, the small ViT of cmae_vit-mini_tiles.py and its schedule, 300
# iterations of batch 128, on images of any channels and depth: workers make
# canvases, views are made of whole batches.
# Data: $DATA_ROOT, any folder of images; for others than colours of 8 bits
# image_stats, the file that `cmae stats $DATA_ROOT --out stats.json` writes.
# cmae train configs/quickstart/cmae_vit-mini_canvas.py --cfg-options \
#     image_stats=stats.json
_base_ = './cmae_vit-mini_tiles.py'

data_preprocessor = dict(
    type='TwoViewDataPreprocessor',
    size=64,
    max_shift=8,
    canvas_size=72,
    blur_sigma=(0.1, 1.0))

train_pipeline = [
    dict(type='LoadCanvas', size=72, crop_ratio_range=(0.2, 1.0)),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
