# What every segmentation transfer shares: logging, checks, resuming.
custom_imports = dict(
    imports=['cmae_mm', 'cmae_mm.dense.segmentation'],
    allow_failed_imports=False)
default_scope = 'mmseg'

# Also where other tools than this project's start it.
runner_type = 'mmpretrain.ResumableRunner'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmpretrain.AtomicCheckpointHook',
        by_epoch=False,
        interval=16000,
        max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    step_seed=dict(type='mmpretrain.StepSeedHook'),
    skipped_step=dict(type='mmpretrain.SkippedStepHook'),
    visualization=dict(type='SegVisualizationHook', draw=False))
custom_hooks = [dict(type='SegmentationCheckHook')]

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
# Training goes on from the work folder's last checkpoint, if there is one.
resume = True

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
