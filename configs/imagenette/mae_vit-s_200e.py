# MAE, ViT-S/16 on Imagenette, 200 epochs, batch 128: the baseline of
# cmae_vit-s_200e.py, with its schedule, rate, crops and probes, and MAE's own
# mask.
# Data: $DATA_ROOT/{train,val}/<class>/*.JPEG, as in imagenette2.
# cmae train configs/imagenette/mae_vit-s_200e.py
_base_ = './cmae_vit-s_200e.py'

data_preprocessor = dict(target_view=False)
model = dict(
    backbone=dict(mask_ratio=0.75, mask_block=1),
    neck=dict(feature_decoder=None),
    head=dict(contrastive=None),
    target=dict(_delete_=True))
custom_hooks = [
    hook for hook in _base_.custom_hooks if hook.type != 'TargetUpdateHook'
]
