"""Images and preprocessors of the input pipeline's tests."""
import numpy as np
from PIL import Image

from cmae_mm.models import TwoViewDataPreprocessor


def preprocessor(**kwargs):
    options = dict(
        size=24,
        max_shift=8,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True)
    return TwoViewDataPreprocessor(**dict(options, **kwargs))


def photo(size=32, seed=0):
    """A smooth RGB image with all sorts of colours, (S, S, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size)))
