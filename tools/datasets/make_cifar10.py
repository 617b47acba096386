#!/usr/bin/env python
"""Download CIFAR-10 and write it as class folders of PNG files.

Writes OUT/{train,test}/<class>/<number>.png, which the configs of
configs/cifar10 and all evaluations read. The download is mmpretrain's CIFAR10.
"""
import argparse
import os
from pathlib import Path

from mmengine.registry import init_default_scope
from mmpretrain.datasets import CIFAR10
from PIL import Image
from tqdm import tqdm


def write_images(dataset, out: Path) -> int:
    """Write a data set of RGB arrays as class folders.

    Args:
        dataset (CIFAR10): With ``img`` and ``gt_label`` in each record.
        out (Path): The folder; what is there already is kept.

    Returns:
        int: The number of images.
    """
    classes = dataset.metainfo['classes']
    for name in classes:
        (out / name).mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(len(dataset)), desc=str(out)):
        record = dataset.get_data_info(i)
        path = out / classes[record['gt_label']] / f'{i:05d}.png'
        if not path.is_file():
            partial = path.with_suffix('.partial')
            Image.fromarray(record['img']).save(partial, 'PNG')
            os.replace(partial, path)
    return len(dataset)


def main() -> None:
    """Download and write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/cifar10'))
    parser.add_argument(
        '--download', type=Path, default=Path('data/cifar10_download'),
        help='where the download is kept (default: data/cifar10_download)')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    for split in ('train', 'test'):
        dataset = CIFAR10(
            data_root=str(args.download), split=split, pipeline=[])
        count = write_images(dataset, args.out / split)
        print(f'{args.out / split}: {count} images')


if __name__ == '__main__':
    main()
