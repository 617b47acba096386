# 100 epochs, linear warm-up and cosine to 0; 10 warm-up epochs, since the
# recipe's 40 are made for long runs.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        by_epoch=True,
        begin=10,
        end=100,
        convert_to_iter_based=True),
]
