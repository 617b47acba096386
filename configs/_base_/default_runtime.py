# Settings shared by all configs: runner, logging, saving and resuming. The
# prefix is the registry of this project's classes, for mmdetection and
# mmsegmentation.
# Set here so that mmengine's and mim's commands use it too.
runner_type = 'mmpretrain.ResumableRunner'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmpretrain.AtomicCheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    step_seed=dict(type='mmpretrain.StepSeedHook'),
    skipped_step=dict(type='mmpretrain.SkippedStepHook'),
    preemption=dict(type='mmpretrain.PreemptionHook'),
    progress=dict(type='mmpretrain.ProgressHook'))

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
# Resume from the newest checkpoint in the work folder, if one exists.
resume = True
