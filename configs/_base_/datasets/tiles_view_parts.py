# The quickstart's crops and colour augmentation as worker transforms, for
# ablations whose views are not two windows of one canvas.
_base_ = './colour_augmentation.py'

crop_and_flip = [
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.2, 1.0),
        backend='cv2',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
]
colour = _base_.target_pipeline
colour[-1].magnitude_range = (0.1, 1.0)
normalisation = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
