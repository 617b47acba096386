"""Images and boxes of COCO files."""
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from ..config import ArgumentError
from ..evaluation.data import PART_NAMES
from ..files import PathLike
from .data import LabelledData, Part, complete, drop_unreadable


def read_boxes(data: PathLike, val: Optional[str] = None,
               labels_per_class: Optional[int] = None,
               seed: int = 0,
               images: Optional[Mapping[str, Any]] = None) -> LabelledData:
    """Find COCO files and their images, and check them.

    Args:
        data (str | PathLike): Folder with ``annotations/*train*.json``, or
            the files beside it, and the images.
        val (str, optional): Name of the validation part.
        labels_per_class (int, optional): Number of training images of each
            class, counted by the rarest class of an image.
        seed (int): Seed of both draws. Defaults to 0.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.

    Returns:
        LabelledData: The parts; records have ``boxes``, annotations of COCO.

    Raises:
        ArgumentError: If there are no such files, images are missing, or
            parts have other categories.
    """
    root = Path(data).expanduser().absolute()
    names = dict(PART_NAMES, **({'val': (val, )} if val else {}))
    found = sorted([*root.glob('annotations/*.json'), *root.glob('*.json')])
    parts: Dict[str, Part] = {}
    classes: List[str] = []
    for part, words in names.items():
        pattern = f'(^|[^a-z])({"|".join(map(re.escape, words))})([^a-z]|$)'
        files = [f for f in found if re.search(pattern, f.stem, re.I)]
        files = [f for f in files if 'instances' in f.stem] or files
        if len(files) > 1:
            raise ArgumentError(
                f'{root} has {len(files)} files for {part}: '
                f'{", ".join(f.name for f in files)}')
        if files:
            parts[part], its = _read_coco(root, files[0])
            if classes and its != classes:
                raise ArgumentError(
                    f'{files[0]} has other categories than the part train')
            classes = its
    if 'train' not in parts or val and 'val' not in parts:
        raise ArgumentError(
            f'{root} has no COCO file of the part '
            f'{val if "train" in parts else "train"}, such as '
            'annotations/instances_train.json')
    parts, unreadable = drop_unreadable(parts, images, _check_size)
    return complete(LabelledData(classes, parts, [], unreadable, 'detect'),
                    labels_per_class, seed)


def _check_size(record: Mapping[str, Any], image: np.ndarray) -> None:
    """Check that boxes are of an image of this size."""
    if image.shape[:2] != (record['height'], record['width']):
        raise ArgumentError(
            f'{record["img_path"]} has {image.shape[1]} x {image.shape[0]} '
            f'pixels, but its annotations say {record["width"]} x '
            f'{record["height"]}')


def _read_coco(root: Path, file: Path) -> Any:
    """Read a COCO file; give a part and the names of its categories."""
    try:
        content = json.loads(file.read_text('utf-8'))
        categories = {c['id']: c['name'] for c in content['categories']}
        boxes: Dict[Any, List[dict]] = {i['id']: [] for i in content['images']}
        for one in content['annotations']:
            boxes[one['image_id']].append({
                k: one.get(k, 0)
                for k in ('bbox', 'area', 'iscrowd', 'category_id')})
            one['name'] = categories[one['category_id']]
        first = content['images'][0]['file_name']
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArgumentError(
            f'{file} is no COCO file of boxes ({error!r})') from error
    places = sorted([root / 'images', root, file.parent, *(
        p for p in [*root.glob('*'), *root.glob('images/*')] if p.is_dir())])
    place = next((p for p in places if (p / first).is_file()), None)
    if place is None:
        raise ArgumentError(f'{file} names {first}, which no folder of {root} '
                            'has')
    numbers = {key: i for i, key in enumerate(categories)}
    names, records, labels = [*categories.values()], [], []
    for image in content['images']:
        path = place / image['file_name']
        if not path.is_file():
            raise ArgumentError(f'{file} names {image["file_name"]}, which '
                                f'{place} does not have')
        its = [dict(b, category_id=numbers[b['category_id']])
               for b in boxes[image['id']]]
        records.append(dict(img_path=str(path), width=image['width'],
                            height=image['height'], boxes=its))
        labels.append(sorted({names[b['category_id']] for b in its}))
    return Part(str(file), records, labels), names
