# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First steps: from a folder of images to features
#
# A small CMAE is pre-trained on a folder of images, without labels, and then
# gives features: pictures of what it has learnt, neighbours, a classifier.
# Some minutes on two CPU cores. `python examples/first_steps.py`
# runs it as a script; `jupytext --to ipynb examples/first_steps.py` makes a
# notebook of it.
#
# `pip install -e '.[onedl,quickstart]'` in a clone installs what it needs.

# %%
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import cmae_mm
from cmae_mm.apis.maps import map_images
from cmae_mm.apis.pictures import features as feature_pictures
from cmae_mm.apis.pictures import reconstruct

# Passes over the images; fewer for a quick look.
EPOCHS = int(os.environ.get('EPOCHS', 10))
OUT = Path(os.environ.get('OUT', 'work_dirs/first_steps'))

# %% [markdown]
# ## Images
#
# Any folder will do. Here it is tiles of the photographs that scikit-image and
# scikit-learn carry; put your own folder in the place of `train`. The folders
# in it say which photograph a tile is of. Training does not look at them.

# %%
CLONE = Path(cmae_mm.__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE / 'tools/quickstart'))
from make_tiles import make_tiles  # noqa: E402

data = OUT / 'tiles'
make_tiles(data, train=int(os.environ.get('TILES', 4000)), val=1000)
train, val = data / 'train', data / 'val'
print(len(list(train.glob('*/*.jpg'))), 'images to train on')

# %% [markdown]
# ## Pre-training
#
# `mini` is a ViT of 4 layers for images of 64 pixels; `vit-s` and larger ones
# want a GPU. Called again, it goes on from the last checkpoint.

# %%
done = cmae_mm.pretrain(train, 'mini', epochs=EPOCHS, out=OUT / 'trained')
print('the encoder is in', done.checkpoint)

# %% [markdown]
# ## What the network makes of masked images
#
# From the left: the online view, the patches that the encoder sees, the pixel
# decoder's reconstruction, and the target view.

# %%
photographs = [next(iter(sorted(folder.iterdir())))
               for folder in sorted(val.iterdir())[:6]]
shown = reconstruct(done.checkpoint, photographs, OUT / 'reconstruction.png')
Image.open(shown.out)

# %% [markdown]
# ## Patch features as colours
#
# Patches that are alike to the encoder have like colours.

# %%
shown = feature_pictures(
    done.checkpoint, photographs, OUT / 'features.png', img_size=192)
Image.open(shown.out)

# %% [markdown]
# ## One feature for each image
#
# The mean of the patch tokens. The encoder is a `torch.nn.Module`:

# %%
encoder = cmae_mm.load_encoder(done.checkpoint)
image = encoder.preprocess(photographs[0])
print('an image', tuple(image.shape), 'gives a feature',
      tuple(encoder(image[None]).shape))

# %% [markdown]
# and all images of a folder at once:

# %%
known = cmae_mm.embed(train, done.checkpoint)
new = cmae_mm.embed(val, done.checkpoint)
print(len(known.paths), 'and', len(new.paths), 'features of', known.shape[1],
      'numbers')

# %% [markdown]
# ## Classifying by neighbours
#
# Of which photograph is a tile? The 20 most alike training tiles vote. Beside
# it, the same with the pixels themselves in the features' place.


# %%
def classes(paths):
    """Give the folder that each image is in."""
    return [Path(path).parent.name for path in paths]


def accuracy(known_features, new_features):
    """Classify by 20 neighbours, and give the share that is right."""
    neighbours = KNeighborsClassifier(20, metric='cosine', weights='distance')
    neighbours.fit(known_features, classes(known.paths))
    return neighbours.score(new_features, classes(new.paths))


def pixels(folder, paths):
    """Give each image as 16 x 16 pixels."""
    return np.stack([
        np.asarray(Image.open(folder / path).convert('RGB').resize((16, 16)),
                   dtype=float).ravel() for path in paths])


by_features = accuracy(known.features, new.features)
by_pixels = accuracy(pixels(train, known.paths), pixels(val, new.paths))
print(f'right by features: {by_features:.1%}, by pixels: {by_pixels:.1%}')

# %% [markdown]
# ## A map
#
# Images that are alike to the encoder stand together.

# %%
drawn = map_images(val, done.checkpoint, OUT / 'map.png', method='tsne',
                   most=300)
Image.open(drawn.out)

# %% [markdown]
# ## How to go on
#
# - More epochs, and your own images: `docs/own-data.md`.
# - Is a run healthy? `docs/health.md`; `cmae report` writes a page.
# - Fine-tuning, detection, segmentation: `docs/transfer.md`.
# - Elsewhere: `cmae export ... --to timm`, `hf_vit` or `onnx`
#   (`docs/checkpoints.md`, `docs/deploy.md`).
