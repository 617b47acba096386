#!/usr/bin/env python
"""Download CIFAR-10 and write it as class folders of PNG files.

Writes OUT/{train,test}/<class>/<number>.png, which the configs of
configs/cifar10 and all evaluations read. The download is mmpretrain's CIFAR10.
docs/results.md has most of its figures on a fifth:

    python tools/datasets/make_cifar10.py --per-class 1000 200 --out DIR
"""
import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from mmengine.registry import init_default_scope
from mmpretrain.datasets import CIFAR10
from PIL import Image
from rich.progress import track


def write_images(dataset, out: Path, per_class: int | None = None) -> int:
    """Write a data set of RGB arrays as class folders.

    Args:
        dataset (CIFAR10): With ``img`` and ``gt_label`` in each record.
        out (Path): The folder; what is there already is kept.
        per_class (int, optional): Only so many of each class, the first.
            Defaults to all.

    Returns:
        int: The number of images.

    Raises:
        FileExistsError: If the folder has images that are not among them.
    """
    classes = dataset.metainfo['classes']
    for name in classes:
        (out / name).mkdir(parents=True, exist_ok=True)
    others = set(out.glob('*/*.png'))
    written: Counter = Counter()
    for i in track(range(len(dataset)), str(out),
                   disable=not sys.stderr.isatty()):
        record = dataset.get_data_info(i)
        name = classes[record['gt_label']]
        if written[name] == per_class:
            continue
        written[name] += 1
        path = out / name / f'{i:05d}.png'
        others.discard(path)
        if not path.is_file():
            partial = path.with_suffix('.partial')
            Image.fromarray(record['img']).save(partial, 'PNG')
            os.replace(partial, path)
    if others:
        raise FileExistsError(
            f'{out} has {len(others)} more images, such as {min(others)}, '
            'that were not asked for; choose another --out, or delete them')
    return sum(written.values())


def main() -> None:
    """Download and write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/cifar10'))
    parser.add_argument(
        '--download', type=Path, default=Path('data/cifar10_download'),
        help='where the download is kept (default: data/cifar10_download)')
    parser.add_argument(
        '--per-class', type=int, nargs=2, metavar=('TRAIN', 'TEST'),
        help='only so many images of each class, the first (default: all)')
    args = parser.parse_args()
    if args.per_class and min(args.per_class) < 1:
        parser.error('--per-class takes two numbers of 1 or more')
    init_default_scope('mmpretrain')
    counts = args.per_class or (None, None)
    for split, per_class in zip(('train', 'test'), counts):
        dataset = CIFAR10(
            data_root=str(args.download), split=split, pipeline=[])
        try:
            count = write_images(dataset, args.out / split, per_class)
        except FileExistsError as error:
            sys.exit(f'make_cifar10.py: {error}')
        print(f'{args.out / split}: {count} images')


if __name__ == '__main__':
    main()
