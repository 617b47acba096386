"""What stands beside mmdetection and mmsegmentation.

Not part of ``import cmae_mm``: those configs import it, by ``custom_imports =
dict(imports=['cmae_mm.dense.detection'])``, so that pre-training and
classification need neither library.
"""
