# 100 epochs: linear warm-up for 10, because the recipe's 40 are for long runs,
# then a cosine to 0.
_base_ = './cosine_300e.py'
train_cfg = dict(max_epochs=100)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 10
param_scheduler[1].update(T_max=90, begin=10, end=100)
