# 1600 epochs: linear warm-up for 40, then a cosine to 0.
_base_ = './cosine_300e.py'
train_cfg = dict(max_epochs=1600)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=1560, end=1600)
