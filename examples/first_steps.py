# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First steps: from a folder of images to a finished model
#
# Pre-train a small CMAE on a folder of images without labels, use its
# features (pictures, nearest neighbours), fine-tune a classifier and predict.
# Takes some minutes on two CPU cores.
# `examples/first_steps.ipynb` is the notebook, `python
# examples/first_steps.py` the same as a script;
# `jupytext --sync examples/first_steps.py` updates one from the other.
#
# Requirements: `pip install -e '.[onedl,quickstart]'` in a clone.

# %%
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import cmae_mm
from cmae_mm.apis.pictures import features as feature_pictures
from cmae_mm.apis.pictures import map_images, reconstruct

# Epochs; use fewer for a quick test.
EPOCHS = int(os.environ.get('EPOCHS', 10))
OUT = Path(os.environ.get('OUT', 'work_dirs/first_steps'))

# %% [markdown]
# ## Images
#
# Any folder works. This example uses tiles of the photographs in scikit-image
# and scikit-learn; replace `train` by your own folder. The class folders name
# the photograph of each tile. Training does not use them.

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
# `mini` is a ViT of 4 layers for images of 64 pixels; `vit-s` and larger
# models need a GPU. A second call resumes from the newest checkpoint.

# %%
done = cmae_mm.pretrain(train, 'mini', epochs=EPOCHS, out=OUT / 'trained')
print('the encoder is in', done.checkpoint)

# %% [markdown]
# ## Reconstruction of masked images
#
# Columns: online view, visible patches, reconstruction by the pixel decoder,
# and target view.

# %%
photographs = [next(iter(sorted(folder.iterdir())))
               for folder in sorted(val.iterdir())[:6]]
shown = reconstruct(done.checkpoint, photographs, OUT / 'reconstruction.png')
Image.open(shown.out)

# %% [markdown]
# ## Patch features as colours
#
# Patches with similar features have similar colours.

# %%
shown = feature_pictures(
    done.checkpoint, photographs, OUT / 'features.png', img_size=192)
Image.open(shown.out)

# %% [markdown]
# ## Features
#
# The feature of an image is the mean of its patch tokens. The encoder is a
# `torch.nn.Module`:

# %%
encoder = cmae_mm.load_encoder(done.checkpoint)
image = encoder.preprocess(photographs[0])
print('image', tuple(image.shape), 'feature',
      tuple(encoder(image[None]).shape))

# %% [markdown]
# Features of all images of a folder:

# %%
known = cmae_mm.embed(train, done.checkpoint)
new = cmae_mm.embed(val, done.checkpoint)
print(len(known.paths), 'and', len(new.paths), 'features of', known.shape[1],
      'numbers')

# %% [markdown]
# ## k-NN classification
#
# Classify the photograph of each tile by its 20 nearest training tiles. The
# baseline uses pixels instead of features.


# %%
def classes(paths):
    """Return the class folder of each image."""
    return [Path(path).parent.name for path in paths]


def accuracy(known_features, new_features):
    """Return the accuracy of classification by 20 nearest neighbours."""
    neighbours = KNeighborsClassifier(20, metric='cosine', weights='distance')
    neighbours.fit(known_features, classes(known.paths))
    return neighbours.score(new_features, classes(new.paths))


def pixels(folder, paths):
    """Return each image as 16 x 16 pixels."""
    return np.stack([
        np.asarray(Image.open(folder / path).convert('RGB').resize((16, 16)),
                   dtype=float).ravel() for path in paths])


by_features = accuracy(known.features, new.features)
by_pixels = accuracy(pixels(train, known.paths), pixels(val, new.paths))
print(f'accuracy by features: {by_features:.1%}, by pixels: {by_pixels:.1%}')

# %% [markdown]
# ## A map
#
# Images with similar features are close to each other.

# %%
drawn = map_images(val, done.checkpoint, OUT / 'map.png', method='tsne',
                   most=300)
Image.open(drawn.out)

# %% [markdown]
# ## A classifier
#
# `finetune` trains the encoder with a head on the class folders of `train`,
# and keeps the checkpoint that is the best on `val`. With few labels, use
# `labels_per_class=10`.

# %%
tuned = cmae_mm.finetune(data, done.checkpoint, OUT / 'classifier',
                         epochs=EPOCHS)
Image.open(tuned.out / 'val_confusion.png')

# %% [markdown]
# ## Predictions
#
# `cmae_mm.export_model(tuned.out, 'classifier.onnx')` writes the model with
# its head, classes and preprocessing; it needs `pip install -e '.[onnx]'`.

# %%
model = cmae_mm.load_model(tuned.out)
for predicted in model.predict(photographs):
    print(f'{predicted.label} {predicted.score:.2f}  {predicted.path}')

# %% [markdown]
# ## Next steps
#
# - More epochs and your own images: `docs/own-data.md`.
# - Health of a run: `docs/health.md`; `cmae report` writes a page.
# - Few labels: `docs/few-labels.md`; detection and segmentation:
#   `docs/transfer.md`.
# - Export: `cmae export ... --to timm`, `hf` or `onnx`
#   (`docs/checkpoints.md`, `docs/deploy.md`).
