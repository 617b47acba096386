# ViTDet, Mask R-CNN, ViT-B: 100 epochs, batch 64.
_base_ = [
    '../_base_/mask-rcnn_vitdet-b.py',
    '../_base_/coco_lsj_1024.py',
    '../_base_/det_adamw_100e.py',
    '../_base_/det_runtime.py',
]
