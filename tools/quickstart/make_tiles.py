#!/usr/bin/env python
"""Cut JPEG tiles from the photographs inside scikit-image and scikit-learn.

A small real data set that needs no download beyond the packages: 20
photographs, class = photograph, ``OUT/{train,val}/<photograph>/*.jpg``. The
training tiles come from one half of each photograph and the validation tiles
from the other, so that no pixel is in both.
"""
import argparse
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    'skimage.data': (
        'astronaut.png', 'brick.png', 'camera.png', 'cell.png', 'chelsea.png',
        'clock_motion.png', 'coffee.png', 'coins.png', 'grass.png',
        'gravel.png', 'hubble_deep_field.jpg', 'ihc.png', 'moon.png',
        'motorcycle_left.png', 'page.png', 'retina.jpg', 'rocket.jpg',
        'text.png'),
    'sklearn.datasets.images': ('china.jpg', 'flower.jpg'),
}
SPLITS = ('train', 'val')


def iter_photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield each photograph's name and image, in RGB.

    Raises:
        FileNotFoundError: If an installed package lacks one.
    """
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            with files(package).joinpath(name).open('rb') as file:
                yield Path(name).stem, Image.open(file).convert('RGB')


def halves(image: Image.Image) -> dict[str, Image.Image]:
    """Split a photograph across its longer side."""
    width, height = image.size
    if width >= height:
        boxes = (0, 0, width // 2, height), (width // 2, 0, width, height)
    else:
        boxes = (0, 0, width, height // 2), (0, height // 2, width, height)
    return {split: image.crop(box) for split, box in zip(SPLITS, boxes)}


def cut_tiles(image: Image.Image, count: int, size: int,
              rng: np.random.Generator) -> Iterator[Image.Image]:
    """Cut square tiles of 0.8 to 1.6 times their final size at random."""
    limit = min(image.size)
    for _ in range(count):
        side = min(int(size * rng.uniform(0.8, 1.6)), limit)
        x = int(rng.integers(0, image.width - side + 1))
        y = int(rng.integers(0, image.height - side + 1))
        yield image.crop((x, y, x + side, y + side)).resize(
            (size, size), Image.Resampling.BICUBIC)


def are_made(done: Path, settings: dict[str, int]) -> bool:
    """Say whether a folder's images are there already.

    Args:
        done (Path): ``<what they are>.json``, written after them.
        settings (dict): Of those that are wanted.

    Raises:
        ValueError: If they are there with other settings.
    """
    if not done.exists():
        return False
    made = json.loads(done.read_text())
    if made != settings:
        raise ValueError(
            f'{done.parent} holds {done.stem} of other settings, {made}, '
            'among which these would be mixed; delete it, or name another '
            'folder')
    return True


def make_tiles(out: Path,
               train: int = 4000,
               val: int = 1000,
               size: int = 80,
               seed: int = 0) -> int:
    """Write the tiles, unless the same ones are there already.

    Args:
        out (Path): The data folder.
        train (int): Training tiles in total. Defaults to 4000.
        val (int): Validation tiles in total. Defaults to 1000.
        size (int): Side of a tile in pixels. Defaults to 80.
        seed (int): Of the random positions. Defaults to 0.

    Returns:
        int: The number of tiles there.

    Raises:
        ValueError: If the folder holds tiles of other settings.
    """
    settings = dict(train=train, val=val, size=size, seed=seed)
    done = out / 'tiles.json'
    if are_made(done, settings):
        return train + val
    counts = dict(train=train, val=val)
    number = sum(len(names) for names in PHOTOGRAPHS.values())
    rng = np.random.default_rng(seed)
    for index, (name, photograph) in enumerate(iter_photographs()):
        for split, half in halves(photograph).items():
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            # The first photographs take what does not divide evenly.
            count = counts[split] // number + (index < counts[split] % number)
            for i, tile in enumerate(cut_tiles(half, count, size, rng)):
                tile.save(folder / f'{i:04d}.jpg', quality=92)
    done.write_text(json.dumps(settings))
    return train + val


def main() -> None:
    """Read the command line and write the tiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='data folder to write')
    parser.add_argument('--train', type=int, default=4000)
    parser.add_argument('--val', type=int, default=1000)
    parser.add_argument('--size', type=int, default=80, help='in pixels')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    try:
        count = make_tiles(**vars(args))
    except ValueError as error:
        parser.error(str(error))
    print(f'{count} tiles in {args.out}')


if __name__ == '__main__':
    main()
