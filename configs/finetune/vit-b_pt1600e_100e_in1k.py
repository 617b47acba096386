# Fine-tuning of a ViT-B/16 pre-trained for 1600 epochs: half the rate.
_base_ = './vit-b_pt300e_100e_in1k.py'
optim_wrapper = dict(optimizer=dict(lr=2.5e-4 * 1024 / 256))
