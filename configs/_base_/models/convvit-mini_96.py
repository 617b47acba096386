# The hybrid encoder of the small configs for CIFAR-10 and COCO, as wide as
# their plain ViT.
convvit_mini_96 = dict(
    embed_dims=[32, 64, 96], depths=[1, 1, 3], num_heads=3)
