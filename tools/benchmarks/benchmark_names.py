#!/usr/bin/env python
"""What a data set of very many images costs before the first is read.

Lists made-up names from a text file (``ann_file``), or, with --links, real
directory entries from a folder, starts workers, shuffles, draws, and resumes
in the middle. Prints one JSON line.

Example: python tools/benchmarks/benchmark_names.py --images 10000000
"""
import argparse
import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from torch.utils.data import DataLoader

import cmae_mm  # noqa: F401  registers the plugin
from cmae_mm.datasets import (BlockShuffleSampler, PretrainingDataset,
                              SeededInfiniteSampler, SeededSampler)
from cmae_mm.datasets.source import open_source
from cmae_mm.engine.loops import skip_batches

PER_FOLDER = 10_000


def made_up(number: int) -> str:
    """Give a name as long as ImageNet's."""
    return f'n{number // PER_FOLDER:08d}/n{number:08d}_{number % 97:05d}.JPEG'


def memory(pids) -> dict:
    """Sum up the memory of processes, in MB.

    Proportional: what several share counts as one of them.
    """
    total = dict(Pss=0, Private=0)
    for pid in pids:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            name = line.split(':')[0]
            if name == 'Pss':
                total['Pss'] += int(line.split()[1])
            elif name.startswith('Private'):
                total['Private'] += int(line.split()[1])
    return {k: v / 1024 for k, v in total.items()}


class Timer:
    """Notes the seconds that parts take."""

    def __init__(self) -> None:
        self.seconds = {}

    def __call__(self, name, function):
        """Call a function and note how long it takes."""
        began = time.perf_counter()
        result = function()
        self.seconds[name] = round(time.perf_counter() - began, 2)
        return result


class Indices(PretrainingDataset):
    """Gives an image's record in place of the image."""

    def open(self):
        """Open the list, whose files are not there."""
        if not self.ann_file:
            return super().open()
        with mock.patch('cmae_mm.datasets.source.check_files'):
            return open_source(self.ann_file)

    def __getitem__(self, index):
        return len(self.get_data_info(index)['img_path'])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--images', type=int, default=10_000_000)
    parser.add_argument('--batch-size', type=int, default=4096)
    parser.add_argument('--workers', type=int, default=8)
    parser.add_argument('--folder', type=Path, default=None,
                        help='where files go (default: a temporary folder)')
    parser.add_argument('--links', action='store_true',
                        help='make as many directory entries and list them')
    args = parser.parse_args()
    timed, out = Timer(), dict(images=args.images, workers=args.workers)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        before = memory([os.getpid()])['Pss']
        if args.links:
            timed('make entries', lambda: make_links(root, args.images))
            dataset = timed('list a folder', lambda: Indices(folder))
        else:
            with open(root / 'names.txt', 'w') as file:
                file.writelines(
                    made_up(i) + '\n' for i in range(args.images))
            dataset = timed('read a list', lambda: Indices(
                folder, ann_file='names.txt'))
        assert len(dataset) == args.images
        out['names_mb'] = round(dataset.source.names.nbytes / 2**20)
        sampler = timed('make a sampler', lambda: SeededSampler(
            dataset, seed=0))
        loader = DataLoader(
            dataset, args.batch_size, sampler=sampler, drop_last=True,
            num_workers=args.workers, persistent_workers=True)
        batches = timed('start workers and first batch',
                        lambda: first_of(loader))
        pids = [w.pid for w in loader._iterator._workers]
        used = memory([os.getpid(), *pids])
        out['pss_mb'] = round(used['Pss'])
        out['of_it_python_and_torch_mb'] = round(before)
        timed('100 batches', lambda: list(islice(batches, 100)))
        batches = loader = None
        sampler.set_epoch(1)
        indices = timed('shuffle and first index', lambda: first_of(sampler))
        timed('100,000 indices with seeds', lambda: list(
            islice(indices, 100_000)))
        half = len(dataset) // args.batch_size // 2
        loader = DataLoader(dataset, args.batch_size, sampler=sampler)
        skip_batches(loader, half)
        timed('resume in the middle of an epoch', lambda: first_of(loader))
        endless = SeededInfiniteSampler(dataset, seed=0)
        endless.skip(50 * len(dataset) + 17)
        timed('resume after 50 epochs, endless', lambda: first_of(endless))
        blocks = BlockShuffleSampler(dataset, seed=0)
        timed('shuffle blocks', lambda: first_of(blocks))
        out['peak_rss_mb'] = round(peak())
    print(json.dumps(dict(out, seconds=timed.seconds)))


def first_of(iterable):
    """Ask for the first; give the iterator."""
    iterator = iter(iterable)
    next(iterator)
    return iterator


def peak() -> float:
    """Give the most memory that this process has had, in MB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) / 1024
    return 0.


def make_links(root: Path, count: int) -> None:
    """Make names of few empty files: a file system's most is 65,000 each."""
    source = None
    for number in range(count):
        if number % PER_FOLDER == 0:
            (root / made_up(number)).parent.mkdir()
        if number % 50_000 == 0:
            source = root / f'.source{number}'
            source.touch()
        os.link(source, root / made_up(number))


if __name__ == '__main__':
    torch.set_num_threads(1)
    sys.exit(main())
