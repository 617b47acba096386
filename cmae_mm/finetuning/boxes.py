"""Images and boxes of COCO files."""
import json
import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ArgumentError
from ..datasets.listing import case_variants
from ..evaluation.data import check_same_classes
from ..files import PathLike
from .data import (LabelledData, Part, collect_parts, complete,
                   describe_narrow, drop_unreadable)


def read_boxes(data: PathLike, val: str | None = None,
               labels_per_class: int | None = None,
               seed: int = 0,
               images: Mapping[str, Any] | None = None,
               smallest: tuple[int, int] = (256, 256)) -> LabelledData:
    """Find COCO files and their images, and check them.

    Args:
        data (str | PathLike): Folder of the images, with
            ``annotations/*train*.json`` or the files in the folder itself.
        val (str, optional): Name of the validation part.
        labels_per_class (int, optional): Number of training images of each
            class, counted by the rarest class of an image.
        seed (int): Seed of both draws. Defaults to 0.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.
        smallest (tuple[int, int]): See
            :func:`~cmae_mm.finetuning.masks.read_masks`.

    Returns:
        LabelledData: The parts; records have ``boxes``, annotations of COCO.

    Raises:
        ArgumentError: If there are no such files, images are missing, or
            parts have other categories.
    """
    root = Path(data).absolute()
    found = collect_parts(root, val, partial(_read_part, root))
    classes = found['train'][1]
    for part, its in found.values():
        check_same_classes(classes, its, part.place)
    parts: dict[str, Part] = {name: part for name, (part, _) in found.items()}
    parts, unreadable = drop_unreadable(
        parts, images, partial(_check, smallest=smallest))
    return complete(LabelledData(classes, parts, [], unreadable, 'detect'),
                    labels_per_class, seed)


def _read_part(root: Path, words: Sequence[str]) -> Any:
    """Read the COCO file of a part, found by its name or its folder's."""
    names = '|'.join(map(re.escape, words))
    pattern = names and f'(^|[^a-z])({names})([^a-z]|$)'
    files = [
        f for f in sorted([*root.glob('*.json'), *root.glob('*/*.json')])
        if (re.search(pattern, f.stem, re.I)
            or f.parent != root and f.parent.name in case_variants(words))
        and not f.stem.startswith('image_info')]  # without boxes
    files = [f for f in files if 'instances' in f.stem] or files
    if len(files) > 1:
        raise ArgumentError(
            f'{root} has {len(files)} COCO files of the part '
            f'{words[0] or "train"}: {", ".join(f.name for f in files[:5])}')
    if not files and '' in words:
        raise ArgumentError(f'{root} has no COCO file, such as '
                            'annotations/instances_train.json')
    folders = sorted(
        [p for p in [root, *root.glob('*'), *root.glob('images/*')]
         if p.is_dir()], key=lambda p: (not re.search(pattern, p.name, re.I),
                                        p.name != 'images', p))
    return _read_coco(files[0], folders) if files else None


def _check(record: Mapping[str, Any], image: np.ndarray,
           smallest: tuple[int, int]) -> str:
    """Check that annotations have the size of the image."""
    if image.shape[:2] != (record['height'], record['width']):
        raise ArgumentError(
            f'{record["img_path"]} has {image.shape[1]} x {image.shape[0]} '
            f'pixels, but its annotations have {record["width"]} x '
            f'{record["height"]}')
    return describe_narrow(image, smallest)


def _read_coco(file: Path, folders: Sequence[Path]) -> Any:
    """Read a COCO file; return a part and the names of its categories.

    The images are in its folder, or in the first folder that has one.
    """
    try:
        content = json.loads(file.read_text('utf-8-sig'))
        names = {c['id']: str(c['name']) for c in content['categories']}
        boxes: dict[Any, list[dict]] = {i['id']: [] for i in content['images']}
        numbers = {key: i for i, key in enumerate(names)}
        if not boxes:
            raise ValueError('it has no images')
        skipped, size_of = 0, {
            i['id']: (int(i['width']), int(i['height']))
            for i in content['images']}
        for one in content['annotations']:
            box = one.get('bbox') or _box_of(one)
            _check_annotation(one, box, boxes, numbers)
            if any(side <= 0 or start >= end or start + side <= 0
                   for start, side, end in zip(
                       box, box[2:], size_of[one['image_id']])):
                skipped += 1
                continue
            boxes[one['image_id']].append(dict(
                bbox=box, area=one.get('area') or box[2] * box[3],
                iscrowd=one.get('iscrowd') or 0,
                category_id=numbers[one['category_id']]))
        first = content['images'][0]['file_name']
        for key in ('id', 'file_name'):
            value, count = Counter(
                i[key] for i in content['images']).most_common(1)[0]
            if count > 1:
                raise ValueError(f'{count} images have the {key} {value!r}')
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else (
            error)
        raise ArgumentError(
            f'{file} is not a COCO file of boxes: {reason}') from error
    if all(b['iscrowd'] for its in boxes.values() for b in its):
        raise ArgumentError(f'{file} has no boxes of single objects')
    if len({*names.values()}) < len(names):
        raise ArgumentError(f'{file} has two categories of one name')
    place = next((p for p in [file.parent, *folders]
                  if (p / first).is_file()), None)
    if place is None:
        hint = '; write / in place of \\ in file_name' * ('\\' in first)
        raise ArgumentError(f'{file} names {first}, which does not exist in '
                            f'{", ".join(map(str, folders[:5]))}{hint}')
    lacking = [i['file_name'] for i in content['images']
               if not (place / i['file_name']).is_file()]
    if lacking:
        raise ArgumentError(
            f'{file} names {len(lacking):,} images that {place} does not '
            f'have, the first: {lacking[0]}')
    classes, records, labels = [*names.values()], [], []
    for image, (width, height) in zip(content['images'], size_of.values()):
        its = boxes[image['id']]
        records.append(dict(img_path=str(place / image['file_name']),
                            width=width, height=height, boxes=its))
        labels.append(sorted({classes[b['category_id']] for b in its
                              if not b['iscrowd']}))
    blank = sum(not one for one in labels)
    notes = [f'{count:,} {what}' for count, what in (
        (skipped, 'boxes without width or height, or outside of their image, '
         'are skipped'),
        (blank, 'images without boxes')) if count]
    return Part(str(file), records, labels, notes=notes), classes


def _check_annotation(annotation: Mapping[str, Any], box: Sequence[float],
                      images: Container, categories: Container) -> None:
    """Check that an annotation has a box, an image and a category."""
    for key, known in (('image_id', images), ('category_id', categories)):
        if annotation[key] not in known:
            raise ValueError(f'the {key} {annotation[key]!r} of an annotation '
                             'does not exist')
    if len(box) != 4 or not all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in box):
        raise ValueError(f'the box {box} of an annotation does not have 4 '
                         'finite numbers')


def _box_of(annotation: Mapping[str, Any]) -> list[float]:
    """Return the box around the polygons of an annotation."""
    points = [p for polygon in annotation['segmentation'] for p in polygon]
    if not points or isinstance(annotation['segmentation'], dict):
        raise ValueError('an annotation has neither a box nor polygons')
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
