# MAE, ViT-B/16, 300 epochs: the baseline, in the same pipeline.
_base_ = [
    '_base_/cmae_vit-b.py',
    '_base_/imagenet_224.py',
    '_base_/adamw_4096.py',
    '_base_/schedule_300e.py',
    '_base_/default_runtime.py',
]

# MAE's own mask, no contrastive branch and so no target: no view is made for
# one, and none is moved.
data_preprocessor = dict(target_view=False)
model = dict(
    backbone=dict(mask_ratio=0.75, mask_block=1),
    neck=dict(feature_decoder=None, projector=None),
    head=dict(contrastive=None),
    target=dict(_delete_=True))
custom_hooks = [dict(type='PretrainCheckHook'), dict(type='PrefetchHook')]
