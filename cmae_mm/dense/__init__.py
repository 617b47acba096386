"""Additions to mmdetection and mmsegmentation.

``import cmae_mm`` does not import this package. Configs of detection and
segmentation do, with ``custom_imports =
dict(imports=['cmae_mm.dense.detection'])``, so pre-training and classification
do not need these libraries.
"""
