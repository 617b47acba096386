# What every classification transfer shares: logging, checks, resuming.
custom_imports = dict(imports=['cmae_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

# Also where other tools than this project's start it.
runner_type = 'mmpretrain.ResumableRunner'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook',
        interval=1,
        max_keep_ckpts=1,
        save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    step_seed=dict(type='StepSeedHook'),
    skipped_step=dict(type='SkippedStepHook'))

# An average of the weights, for evaluation: add
# dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL').
custom_hooks = [dict(type='TransferCheckHook')]

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
# Training goes on from the work folder's last checkpoint, if there is one.
resume = True

val_cfg = dict()
test_cfg = dict()
