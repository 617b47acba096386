"""A map of images: alike to the encoder, near on the map.

UMAP is used where umap-learn is installed (extra='map').
"""
import importlib.util
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

METHODS = ('auto', 'umap', 'tsne')
# Colours that are told apart, also by most of the colour-blind (Okabe, Ito),
# and lighter ones of the same.
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#d55e00', '#56b4e9',
           '#f0e442', '#000000', '#7fb8d8', '#f2cf7f', '#7fceb9', '#e5bcd3',
           '#eaae7f', '#aad9f4', '#f7f1a0', '#7f7f7f')


def choose_method(method: str = 'auto') -> str:
    """Choose how images are laid out.

    Args:
        method (str): 'umap', 'tsne', or 'auto', UMAP where it is installed.
            Defaults to 'auto'.

    Returns:
        str: 'umap' or 'tsne'.
    """
    if method != 'auto':
        return method
    return 'umap' if importlib.util.find_spec('umap') else 'tsne'


def lay_out(features: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """Place images in the plane, those of like features near each other.

    Distances are cosine distances. What the method gives is pulled half way
    to an even spacing along both axes, so that pictures can be seen.

    Args:
        features (np.ndarray): (N, D), N of 2 or more.
        method (str): 'umap' or 'tsne'.
        seed (int): Seed of the layout. Defaults to 0.

    Returns:
        np.ndarray: Places in [0, 1], (N, 2).
    """
    count = len(features)
    model: Any
    if count < 5:  # too few for either
        places = np.linspace(0, 1, count)[:, None].repeat(2, axis=1)
        return places
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
    # Half way to even spacing: thumbnails hide each other less.
    order = places.argsort(axis=0).argsort(axis=0) / (count - 1)
    return (places + order) / 2


def draw_map(places: np.ndarray,
             thumbnails: Sequence[np.ndarray],
             groups: Optional[Sequence[str]] = None,
             size: int = 1600) -> Any:
    """Draw thumbnails at their places, framed by the colour of their group.

    Args:
        places (np.ndarray): In [0, 1], (N, 2).
        thumbnails (Sequence[np.ndarray]): N pictures, uint8, (T, T, 3) each.
        groups (Sequence[str], optional): N names. Those of the most frequent
            groups, as many as there are colours, get frames and stand in the
            legend. Defaults to None.
        size (int): Side of the map in pixels. Defaults to 1600.

    Returns:
        PIL.Image.Image: The map, RGB.
    """
    from PIL import Image, ImageDraw

    from .sheet import font_for
    side = thumbnails[0].shape[0]
    colours = _colours_of(groups or [])
    legend = 220 if colours else 0
    sheet = Image.new('RGB', (size + legend, size), 'white')
    draw = ImageDraw.Draw(sheet)
    for i, (place, thumbnail) in enumerate(zip(places, thumbnails)):
        x, y = (2 + place * (size - side - 4)).round().astype(int)
        sheet.paste(Image.fromarray(thumbnail), (int(x), int(y)))
        colour = colours.get(groups[i]) if groups else None
        if colour:
            draw.rectangle((int(x) - 1, int(y) - 1, int(x) + side,
                            int(y) + side), outline=colour, width=2)
    font = font_for(colours, 15)
    for i, (name, colour) in enumerate(colours.items()):
        draw.rectangle((size + 8, 10 + 24 * i, size + 24, 26 + 24 * i),
                       fill=colour)
        draw.text((size + 32, 9 + 24 * i), name[:22], fill='black', font=font)
    return sheet


def _colours_of(groups: Sequence[str]) -> Dict[str, str]:
    names: List[str] = sorted(set(groups))
    if len(names) < 2:
        return {}
    frequent = sorted(names, key=lambda n: -list(groups).count(n))
    return dict(zip(sorted(frequent[:len(COLOURS)]), COLOURS))


def nearest(features: np.ndarray, queries: np.ndarray, count: int
            ) -> List[List[tuple]]:
    """Find the most similar features by cosine.

    Args:
        features (np.ndarray): (N, D).
        queries (np.ndarray): (Q, D).
        count (int): How many are wanted for each query, at most N.

    Returns:
        List[List[tuple]]: For each query (number, cosine), nearest first.
    """
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
            for v in (features.astype(np.float32),
                      queries.astype(np.float32))]
    cosine = unit[1] @ unit[0].T
    order = np.argsort(-cosine, axis=1, kind='stable')[:, :count]
    return [[(int(i), float(row[i])) for i in best]
            for row, best in zip(cosine, order)]
