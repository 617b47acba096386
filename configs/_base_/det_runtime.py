# What every detection transfer shares: logging, checks, resuming.
custom_imports = dict(
    imports=['cmae_mm', 'cmae_mm.dense.detection'], allow_failed_imports=False)
default_scope = 'mmdet'

# Also where other tools than this project's start it.
runner_type = 'mmpretrain.ResumableRunner'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmpretrain.AtomicCheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    step_seed=dict(type='mmpretrain.StepSeedHook'),
    skipped_step=dict(type='mmpretrain.SkippedStepHook'),
    visualization=dict(type='DetVisualizationHook'))
custom_hooks = [dict(type='DetectionCheckHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
# Training goes on from the work folder's last checkpoint, if there is one.
resume = True

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
