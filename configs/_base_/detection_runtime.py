# Settings shared by all detection configs.
_base_ = './default_runtime.py'
custom_imports = dict(
    imports=['cmae_mm', 'cmae_mm.dense.detection'],
    allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(interval=50), visualization=dict(type='DetVisualizationHook'))
custom_hooks = [dict(type='DetectionCheckHook')]

env_cfg = dict(cudnn_benchmark=False)
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
