# Crops and colour augmentation of cmae_vit-mini_20e.py as worker transforms
# for images of 32 pixels, for methods whose views are not two windows of one
# canvas.
_base_ = './colour_augmentation.py'

crop_and_flip = [
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),
        backend='cv2',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
]
colour = _base_.target_pipeline
colour[-1].magnitude_range = (0.1, 0.6)
normalisation = dict(
    type='SelfSupDataPreprocessor',
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True)
