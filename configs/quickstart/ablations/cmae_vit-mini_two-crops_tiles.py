# CMAE, an ablation of cmae_vit-mini_tiles.py: two independent crops in place
# of the pixel shift; 300 iterations of batch 128.
# Data: $DATA_ROOT, any folder of images.
# cmae train configs/quickstart/ablations/cmae_vit-mini_two-crops_tiles.py
_base_ = [
    '../cmae_vit-mini_tiles.py',
    '../../_base_/datasets/tiles_view_parts.py',
]

data_preprocessor = dict(_delete_=True, **_base_.normalisation)
train_pipeline = [
    dict(type='SeedDraws'),
    dict(type='LoadImageOrSkip'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[
            _base_.crop_and_flip, [*_base_.crop_and_flip, *_base_.colour]
        ]),
    dict(type='PackInputs', meta_keys=('img_path', )),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
