# Settings shared by all classification configs.
_base_ = './default_runtime.py'
custom_imports = dict(imports=['cmae_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(checkpoint=dict(save_best='auto'))
# To evaluate an exponential moving average of the weights, add
# dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL').
custom_hooks = [dict(type='TransferCheckHook')]

visualizer = dict(
    type='UniversalVisualizer', vis_backends=_base_.vis_backends)
val_cfg = dict()
test_cfg = dict()
