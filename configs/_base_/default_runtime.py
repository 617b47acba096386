# What every pre-training config shares: logging, checkpoints, resuming.
custom_imports = dict(imports=['cmae_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

# Also where other tools than this project's start it.
runner_type = 'mmpretrain.ResumableRunner'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    step_seed=dict(type='StepSeedHook'),
    skipped_step=dict(type='SkippedStepHook'))

custom_hooks = [
    dict(type='PretrainCheckHook'),
    dict(type='TargetUpdateHook'),
    dict(type='PrefetchHook'),
]

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_processor = dict(window_size=10)
log_level = 'INFO'

# Projector and predictor normalise over the batch of all GPUs.
sync_bn = 'torch'
randomness = dict(seed=0)
# Training goes on from the work folder's last checkpoint, if there is one.
load_from = None
resume = True
