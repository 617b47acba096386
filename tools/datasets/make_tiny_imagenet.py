#!/usr/bin/env python
"""Unpack images of a Tiny ImageNet archive into class folders.

Takes a ZIP file of {train,val}/<class>/*.JPEG, as a part of Tiny ImageNet, or
the original, tiny-imagenet-200.zip. Writes OUT/{train,val}/<class>/*.JPEG;
studies/small.yaml uses the first 100 and 50 images of each class,
studies/labels.yaml a test part, studies/init.yaml every other class:

    python tools/datasets/make_tiny_imagenet.py ZIP --per-class 100 50
    python tools/datasets/make_tiny_imagenet.py ZIP --per-class 500 25 25
    python tools/datasets/make_tiny_imagenet.py ZIP --per-class 500 50 --half 1
"""
import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath


def find_images(archive: zipfile.ZipFile) -> dict[str, tuple[str, str]]:
    """Find the part, train or val, and the class of each image."""
    names = sorted(archive.namelist())
    labels = {}
    for name in names:
        if name.endswith('val_annotations.txt'):
            lines = archive.read(name).decode().splitlines()
            labels = dict(line.split('\t')[:2] for line in lines)
    found = {}
    for name in names:
        parts = PurePosixPath(name).parts
        part = next((p for p in parts if p in ('train', 'val')), None)
        if part is None or not name.upper().endswith('.JPEG'):
            continue
        inside = parts[parts.index(part) + 1:-1]
        if inside == ('images', ):
            found[name] = part, labels[parts[-1]]
        elif inside:
            found[name] = part, inside[0]
    return found


def unpack(path: Path, out: Path,
           per_class: Sequence[int] | None = None,
           half: int | None = None) -> Counter:
    """Write the images as class folders.

    Args:
        path (Path): The archive.
        out (Path): Folder to write to.
        per_class (Sequence[int], optional): Number of training and of
            validation images of each class, the first by name, and maybe of
            test images, the next ones of validation. Defaults to all.
        half (int, optional): 1 or 2 for every other class by name, from the
            first or the second. Defaults to all.

    Returns:
        Counter: Number of images by part.

    Raises:
        ValueError: If the archive has no such images.
    """
    most = dict(zip(('train', 'val', 'test'), [*per_class, 0])
                ) if per_class else {}
    taken: Counter = Counter()
    with zipfile.ZipFile(path) as archive:
        found = find_images(archive)
        classes = sorted({label for _, label in found.values()})
        chosen = classes[half - 1::2] if half else classes
        for name, place in found.items():
            if place[1] not in chosen:
                continue
            if place[0] == 'val' and taken[place] == most.get('val'):
                place = 'test', place[1]
            if taken[place] == most.get(place[0], -1):
                continue
            taken[place] += 1
            target = out.joinpath(*place, PurePosixPath(name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    if not taken:
        raise ValueError(f'{path} has no {{train,val}}/<class>/*.JPEG')
    count: Counter = Counter()
    for (part, _), number in taken.items():
        count[part] += number
    return count


def main() -> None:
    """Unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', type=Path, metavar='ZIP')
    parser.add_argument('--out', type=Path, default=Path('data/tiny_imagenet'))
    parser.add_argument(
        '--per-class', type=int, nargs='+', metavar='N',
        help='only so many images of each class for training, validation and '
        'maybe test, the first (default: all)')
    parser.add_argument(
        '--half', type=int, choices=[1, 2],
        help='only every other class by name, from the first or the second')
    args = parser.parse_args()
    if args.per_class and not 2 <= len(args.per_class) <= 3:
        parser.error('--per-class needs two or three numbers')
    try:
        count = unpack(args.archive, args.out, args.per_class, args.half)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f'make_tiny_imagenet.py: {error}')
    print(f'{args.out}: ' + ', '.join(
        f'{number} {part} images' for part, number in count.items()))


if __name__ == '__main__':
    main()
