# MAE, ViT-B/16: the baseline in the same pipeline, 300 epochs, batch 4096.
# Data: $DATA_ROOT/train/<class>/*.jpg, or any folder of images.
# tools/dist_train.sh configs/mae_vit-b_300e.py 8
_base_ = './cmae_vit-b_300e.py'

# MAE's own mask, without contrastive branch, target and target view.
data_preprocessor = dict(target_view=False)
model = dict(
    backbone=dict(mask_ratio=0.75, mask_block=1),
    neck=dict(feature_decoder=None),
    head=dict(contrastive=None),
    target=dict(_delete_=True))
custom_hooks = [
    dict(type='PretrainCheckHook'),
    dict(type='PrefetchHook'),
    dict(type='HealthHook'),
    dict(type='ReconstructionHook', interval=50),
]
