# ViT-L and ViT-H: MAE's schedule, 50 epochs, layer decay 0.75.
_base_ = './finetune_100e.py'
optim_wrapper = dict(
    optimizer=dict(lr=1e-3 * 1024 / 256),
    paramwise_cfg=dict(layer_decay_rate=0.75))
train_cfg = dict(max_epochs=50)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=45, end=50)
