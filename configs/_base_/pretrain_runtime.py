# Settings shared by all pre-training configs.
_base_ = './default_runtime.py'
custom_imports = dict(imports=['cmae_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
custom_hooks = [
    dict(type='PretrainCheckHook'),
    dict(type='TargetUpdateHook'),
    dict(type='PrefetchHook'),
    dict(type='HealthHook'),
    dict(type='ReconstructionHook', interval=50),
]

visualizer = dict(
    type='UniversalVisualizer', vis_backends=_base_.vis_backends)
log_processor = dict(window_size=10)
# Projector and predictor normalise over the batch of all GPUs.
sync_bn = 'torch'
