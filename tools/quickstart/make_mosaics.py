#!/usr/bin/env python
"""Cut mosaics of textures, with their maps, from photographs.

A small task of segmentation that needs no download: the classic one of texture
mosaics. Each image is parted among a few random points (each pixel to its
nearest), and each part shows another of the photographs that make_tiles.py
cuts into tiles: class = photograph. Images for training come from the same
half of each photograph as the training tiles, the others from the other half.
``OUT/{images,maps}/{train,val}/*``; maps hold 1 and up.

    python tools/quickstart/make_mosaics.py data/mosaics
"""
import argparse
import json
from pathlib import Path

import numpy as np
from make_tiles import SPLITS, are_made, cut_tiles, halves, iter_photographs
from PIL import Image


def draw_parts(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Part a square among random points.

    Args:
        size (int): Side in pixels.
        count (int): Number of points.
        rng (np.random.Generator): Draws the points.

    Returns:
        np.ndarray: The number of the nearest point of each pixel,
        (size, size).
    """
    points = rng.uniform(0, size, (count, 2))
    pixels = np.stack(np.mgrid[:size, :size], -1) + 0.5
    squares = ((pixels[:, :, None] - points)**2).sum(-1)
    return squares.argmin(-1)


def make_mosaic(photographs: list[Image.Image], size: int, parts: int,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one mosaic.

    Args:
        photographs (list[Image.Image]): What the parts are cut from.
        size (int): Side in pixels.
        parts (int): Number of parts, each of another photograph.
        rng (np.random.Generator): Draws all of it.

    Returns:
        tuple[np.ndarray, np.ndarray]: The image, (size, size, 3), and the map,
        (size, size), of the photographs' numbers from 1.
    """
    chosen = rng.choice(len(photographs), parts, replace=False)
    where = draw_parts(size, parts, rng)
    image = np.empty((size, size, 3), np.uint8)
    for part, number in enumerate(chosen):
        tile, = cut_tiles(photographs[number], 1, size, rng)
        image[where == part] = np.asarray(tile)[where == part]
    return image, (chosen[where] + 1).astype(np.uint8)


def make_mosaics(out: Path, counts: dict[str, int], size: int, parts: int,
                 seed: int) -> None:
    """Write the mosaics, unless the same ones are there already.

    Args:
        out (Path): The data folder.
        counts (dict[str, int]): Number of mosaics of each split.
        size (int): Side of a mosaic in pixels.
        parts (int): Number of parts of a mosaic.
        seed (int): Of all draws.

    Raises:
        ValueError: If the folder holds mosaics of other settings, or there
            are fewer photographs than parts.
    """
    settings = dict(counts, size=size, parts=parts, seed=seed)
    done = out / 'mosaics.json'
    if are_made(done, settings):
        return
    rng = np.random.default_rng(seed)
    photographs = [halves(image) for _, image in iter_photographs()]
    if not 1 <= parts <= len(photographs):
        raise ValueError(
            f'a mosaic has 1 to {len(photographs)} parts, each of another '
            f'photograph, but parts is {parts}')
    for split in SPLITS:
        for kind in ('images', 'maps'):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        sources = [half[split] for half in photographs]
        for number in range(counts[split]):
            image, labels = make_mosaic(sources, size, parts, rng)
            Image.fromarray(image).save(
                out / 'images' / split / f'{number:04d}.jpg', quality=92)
            Image.fromarray(labels).save(
                out / 'maps' / split / f'{number:04d}.png')
    done.write_text(json.dumps(settings))


def main() -> None:
    """Read the command line and write the mosaics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='data folder to write')
    parser.add_argument('--train', type=int, default=200)
    parser.add_argument('--val', type=int, default=100)
    parser.add_argument('--size', type=int, default=128, help='in pixels')
    parser.add_argument('--parts', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    try:
        make_mosaics(args.out, dict(train=args.train, val=args.val),
                     args.size, args.parts, args.seed)
    except ValueError as error:
        parser.error(str(error))
    print(f'{args.train + args.val} mosaics in {args.out}')


if __name__ == '__main__':
    main()
