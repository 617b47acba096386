# CMAE, an ablation of cmae_vit-mini_tiles.py: colour augmentation of the
# online and the target view; 300 iterations of batch
# 128.
# Data: $DATA_ROOT, any folder of images.
# cmae train configs/quickstart/ablations/cmae_vit-mini_colour-both_tiles.py
_base_ = [
    '../cmae_vit-mini_tiles.py',
    '../../_base_/datasets/tiles_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadCanvas', size=72, crop_ratio_range=(0.2, 1.0)),
    dict(
        type='PixelShift',
        size=64,
        max_shift=8,
        canvas_size=72,
        online_pipeline=_base_.colour,
        target_pipeline=_base_.colour),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
