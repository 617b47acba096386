# Settings shared by all segmentation configs.
_base_ = './default_runtime.py'
custom_imports = dict(
    imports=['cmae_mm', 'cmae_mm.dense.segmentation'],
    allow_failed_imports=False)
default_scope = 'mmseg'

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),
    visualization=dict(type='SegVisualizationHook', draw=False))
custom_hooks = [dict(type='SegmentationCheckHook')]

visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer')
log_processor = dict(by_epoch=False)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
