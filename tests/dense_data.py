"""Made-up images with annotations, for detection and segmentation."""
import json

import numpy as np
from helpers import write_images
from PIL import Image


def write_coco(root, images=4, classes=('cat', 'dog')):
    """Write images with a rectangle of each class, in COCO's layout."""
    for split in ('train', 'val'):
        write_images(root / f'images/{split}2017', images, size=96)
        names = sorted(
            p.name for p in (root / f'images/{split}2017').iterdir())
        rng = np.random.default_rng(0)
        annotations = []
        for i in range(images):
            for c in range(len(classes)):
                x, y = (int(v) for v in rng.integers(0, 48, 2))
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=i, category_id=c + 1,
                        bbox=[x, y, 40, 40], area=1600, iscrowd=0,
                        segmentation=[[x, y, x + 40, y, x + 40, y + 40, x,
                                       y + 40]]))
        (root / 'annotations').mkdir(exist_ok=True)
        (root / f'annotations/instances_{split}2017.json').write_text(
            json.dumps(
                dict(
                    info={}, annotations=annotations,
                    images=[dict(id=i, file_name=n, width=96, height=96)
                            for i, n in enumerate(names)],
                    categories=[dict(id=c + 1, name=n)
                                for c, n in enumerate(classes)])))
    return root


def write_maps(root, images=8):
    """Write images and maps of the categories 1, 7 and 200."""
    for split in ('train', 'val'):
        write_images(root / f'images/{split}2017', images, size=64)
        folder = root / f'semantic/{split}2017'
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for path in (root / f'images/{split}2017').iterdir():
            ids = rng.choice([0, 1, 7, 200], (4, 4)).astype(np.uint8)
            Image.fromarray(ids.repeat(16, 0).repeat(16, 1)).save(
                folder / f'{path.stem}.png')
    (root / 'semantic/classes.json').write_text(
        json.dumps({'0': 'unlabeled', '200': 'rug', '1': 'person',
                    '7': 'train'}))
    return root
