# The encoder of the small configs for CIFAR-10 and COCO, whose results are in
# docs/evaluation.md and docs/transfer.md; the quickstart's arch='mini' is 128
# wide.
vit_mini_96 = dict(
    embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384)
