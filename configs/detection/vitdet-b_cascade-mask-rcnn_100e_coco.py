# ViTDet, Cascade Mask R-CNN, ViT-B: images of 1024 pixels, 100 epochs, batch
# 64.
# Data: $DATA_ROOT/{annotations,train2017,val2017}
# Two machines: NNODES=2 NODE_RANK=... MASTER_ADDR=...
# tools/dist_train.sh \
#     configs/detection/vitdet-b_cascade-mask-rcnn_100e_coco.py 8 \
#     --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = './vitdet-b_mask-rcnn_100e_coco.py'

# Three stages of Mask R-CNN's box head with increasing IoU thresholds.
bbox_head = _base_.model.roi_head.bbox_head
bbox_head.update(
    reg_class_agnostic=True,
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
rcnn = _base_.model.train_cfg.rcnn
rcnn.assigner.match_low_quality = False
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                bbox_head,
                bbox_coder=dict(bbox_head.bbox_coder, target_stds=stds))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1],
                         [0.033, 0.033, 0.067, 0.067])
        ]),
    train_cfg=dict(rcnn=[
        dict(
            rcnn,
            assigner=dict(
                rcnn.assigner,
                pos_iou_thr=iou,
                neg_iou_thr=iou,
                min_pos_iou=iou)) for iou in (0.5, 0.6, 0.7)
    ]))
