"""Two-dimensional maps of features, and nearest neighbours.

UMAP needs umap-learn (extra='map').
"""
import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .image_grid import font_for

# Colours that the colour-blind can distinguish (Okabe, Ito), and lighter ones.
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#d55e00', '#56b4e9',
           '#f0e442', '#000000', '#7fb8d8', '#f2cf7f', '#7fceb9', '#e5bcd3',
           '#eaae7f', '#aad9f4', '#f7f1a0', '#7f7f7f')
_LEGEND_WIDTH = 220


def choose_method(method: str = 'auto') -> str:
    """Resolve 'auto' to 'umap' if it is installed, otherwise to 'tsne'."""
    if method != 'auto':
        return method
    return 'umap' if importlib.util.find_spec('umap') else 'tsne'


def project(features: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """Project features to the plane.

    Distances are cosine distances. Positions are averaged with evenly spaced
    ones along both axes, so thumbnails overlap less.

    Args:
        features (np.ndarray): (N, D), N of 2 or more.
        method (str): 'umap' or 'tsne'.
        seed (int): Seed of the layout. Defaults to 0.

    Returns:
        np.ndarray: Positions in [0, 1], (N, 2).
    """
    count = len(features)
    if count < 5:  # too few for UMAP and t-SNE
        return np.linspace(0, 1, count)[:, None].repeat(2, axis=1)
    model: Any
    if method == 'umap':
        import umap
        model = umap.UMAP(n_neighbors=min(15, count - 1), metric='cosine',
                          init='random' if count < 20 else 'spectral',
                          random_state=seed, n_jobs=1)
    else:
        from sklearn.manifold import TSNE
        model = TSNE(perplexity=min(30., (count - 1) / 3), metric='cosine',
                     init='random', random_state=seed)
    places = model.fit_transform(np.asarray(features, np.float32))
    low, high = places.min(axis=0), places.max(axis=0)
    places = (places - low) / np.maximum(high - low, 1e-12)
    even = places.argsort(axis=0).argsort(axis=0) / (count - 1)
    return (places + even) / 2


def draw_map(places: np.ndarray,
             thumbnails: Sequence[np.ndarray],
             groups: Sequence[str],
             size: int = 1600) -> Image.Image:
    """Draw thumbnails at positions, with frames in group colours.

    Args:
        places (np.ndarray): In [0, 1], (N, 2).
        thumbnails (Sequence[np.ndarray]): N pictures of one size, uint8,
            (H, W, 3) each.
        groups (Sequence[str]): N names. Only the most frequent groups, one
            for each colour, have frames and a legend.
        size (int): Side of the map in pixels. Defaults to 1600.

    Returns:
        Image.Image: The map, RGB.
    """
    height, wide = thumbnails[0].shape[:2]
    frequent = Counter(groups).most_common(len(COLOURS))
    colours: dict[str, str] = {}
    if len(frequent) > 1:
        colours = dict(zip(sorted(name for name, _ in frequent), COLOURS))
    width = size + (_LEGEND_WIDTH if colours else 0)
    sheet = Image.new('RGB', (width, size), 'white')
    draw = ImageDraw.Draw(sheet)
    corners = (2 + places * (size - np.array([wide, height]) - 4)
               ).round().astype(int).tolist()
    for (x, y), thumbnail, group in zip(corners, thumbnails, groups):
        sheet.paste(Image.fromarray(thumbnail), (x, y))
        if group in colours:
            draw.rectangle((x - 1, y - 1, x + wide, y + height),
                           outline=colours[group], width=2)
    font = font_for(colours, 15)
    for i, (name, colour) in enumerate(colours.items()):
        draw.rectangle((size + 8, 10 + 24 * i, size + 24, 26 + 24 * i),
                       fill=colour)
        draw.text((size + 32, 9 + 24 * i), name[:22], fill='black', font=font)
    return sheet


def find_nearest(features: np.ndarray, queries: np.ndarray, count: int
                 ) -> list[list[tuple[int, float]]]:
    """Find the most similar features by cosine.

    Args:
        features (np.ndarray): (N, D).
        queries (np.ndarray): (Q, D).
        count (int): Number of neighbours of each query, at most N.

    Returns:
        list[list[tuple[int, float]]]: For each query (index, cosine), nearest
        first.
    """
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
            for v in (features.astype(np.float32),
                      queries.astype(np.float32))]
    cosine = unit[1] @ unit[0].T
    order = np.argsort(-cosine, axis=1, kind='stable')[:, :count]
    return [[(int(i), float(row[i])) for i in best]
            for row, best in zip(cosine, order)]
