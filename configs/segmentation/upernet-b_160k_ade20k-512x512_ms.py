# UPerNet, ViT-B, ADE20K, tested at six sizes and flipped, with a checkpoint of
# upernet-b_160k_ade20k-512x512.py.
# Data: $DATA_ROOT/{images,annotations}/validation
# tools/dist_test.sh configs/segmentation/upernet-b_160k_ade20k-512x512_ms.py \
#     CHECKPOINT 8
_base_ = './upernet-b_160k_ade20k-512x512.py'

model = dict(_delete_=True, type='SegTTAModel', module=_base_.model)

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=r, keep_ratio=True)
                for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [
                dict(type='RandomFlip', prob=0., direction='horizontal'),
                dict(type='RandomFlip', prob=1., direction='horizontal'),
            ],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='PackSegInputs')],
        ]),
]
test_dataloader = dict(dataset=dict(pipeline=tta_pipeline))
