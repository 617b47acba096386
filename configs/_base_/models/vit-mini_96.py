# The encoder of the small configs for CIFAR-10 and COCO; results in
# docs/evaluation.md and docs/results-details.md. The quickstart's arch='mini'
# has width 128.
vit_mini_96 = dict(
    embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384)
