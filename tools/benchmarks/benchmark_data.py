#!/usr/bin/env python
"""Measure the input pipeline: images/s of its parts, side by side.

(a) decoding alone, (b) the worker's path (LoadCanvas), (c) the all-CPU
two-view pipeline of the reference recipe (mmpretrain's transforms), all on one
core, and (d) the preprocessor on the device. With --store, a store of the same
images (`cmae store`), its (a) and (b) too. The parts alternate, round after
round, on the same images; medians of the rounds are reported.
"""
import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS

import cmae_mm  # noqa: F401  registers the plugin
from cmae_mm.datasets import PixelShift
from cmae_mm.datasets.decode import decode_image
from cmae_mm.datasets.source import open_source, read_record

ROOT = Path(__file__).resolve().parents[2]
PARTS = ('decode', 'worker', 'cpu_two_views')
STORE_PARTS = ('store_decode', 'store_worker')
# Where an image is: what transforms take.
Place = dict[str, Any]


def find_images(data: Path) -> list[Place]:
    """List the images of a folder or a store."""
    return list(open_source(data))


def decode(place: Place) -> object:
    """Read an image and decode it, at its full size."""
    return decode_image(read_record(place))


def build_pipeline(name: str) -> Callable[[Place], object]:
    """Build what makes one sample of an image file."""
    name = name.removeprefix('store_')
    if name == 'decode':
        return decode
    base = dict(
        worker='imagenet_pretrain', cpu_two_views='imagenet_pretrain_cpu')
    cfg = Config.fromfile(ROOT / f'configs/_base_/datasets/{base[name]}.py')
    transforms = [TRANSFORMS.build(t) for t in cfg.train_pipeline]

    mean, std = (np.array(cfg.data_preprocessor[k], np.float32)
                 for k in ('mean', 'std'))

    def run(place: Place) -> object:
        results = dict(place)
        for transform in transforms:
            results = transform(results)
            if isinstance(transform, PixelShift):
                # The reference recipe normalises on the CPU, in float.
                results['img'] = [
                    mmcv.imnormalize(view, mean, std)
                    for view in results['img']
                ]
        return results

    return run


def measure_round(paths: list[Place], stored: list[Place],
                  seconds: float) -> dict[str, float]:
    """Measure each part once, in one process with one thread."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    rates = {}
    for name in PARTS + (STORE_PARTS if stored else ()):
        run = build_pipeline(name)
        places = stored if name in STORE_PARTS else paths
        run(places[0])
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            run(places[count % len(places)])
            count += 1
        rates[name] = count / (time.perf_counter() - start)
    return rates


def measure_preprocessor(seconds: float, batch_size: int) -> float:
    """Measure the preprocessor on the accelerator, or the CPU."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(
        ROOT / 'configs/_base_/datasets/imagenet_pretrain.py')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    preprocessor = MODELS.build(cfg.data_preprocessor).to(device)
    canvas = torch.randint(
        0, 256, (batch_size, 3, 256, 256), dtype=torch.uint8)
    if device == 'cuda':
        canvas = canvas.pin_memory()

    def run() -> None:
        preprocessor(dict(inputs=canvas), training=True)
        if device == 'cuda':
            torch.cuda.synchronize()

    run()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        run()
        count += batch_size
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--data', type=Path, required=True, help='folder of images')
    parser.add_argument(
        '--store', type=Path, help='store of the same images')
    parser.add_argument(
        '--workers', type=int, default=1,
        help='processes that measure at once; rates are per process '
        '(default: 1)')
    parser.add_argument(
        '--seconds', type=float, default=30,
        help='in total, without the preprocessor (default: 30)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--batch-size', type=int, default=64, help="the preprocessor's")
    parser.add_argument('--json', help='write the results to this file')
    args = parser.parse_args()

    paths = find_images(args.data)
    stored = find_images(args.store) if args.store else []
    parts = PARTS + (STORE_PARTS if stored else ())
    share = args.seconds / args.rounds / len(parts)
    rounds: list[dict[str, float]] = []
    with ProcessPoolExecutor(args.workers) as pool:
        for _ in range(args.rounds):
            jobs = [
                pool.submit(measure_round, paths, stored, share)
                for _ in range(args.workers)
            ]
            rounds += [job.result() for job in jobs]
    result: dict[str, float | None] = {
        name: statistics.median(r[name] for r in rounds)
        for name in parts
    }
    result['preprocessor'] = measure_preprocessor(
        max(args.seconds / 5, 1), args.batch_size)
    # Parts of one round were measured in the same seconds.
    ratios = [('worker_over_cpu', 'worker', 'cpu_two_views'),
              ('worker_over_decode', 'worker', 'decode')]
    if stored:
        ratios += [('store_worker_over_decode', 'store_worker', 'decode'),
                   ('store_worker_over_worker', 'store_worker', 'worker')]
    for name, above, below in ratios:
        result[name] = statistics.median(r[above] / r[below] for r in rounds)

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        f'CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores')
    print(f'{len(paths)} images, {args.workers} process(es), medians of '
          f'{len(rounds)} rounds')
    for name, text in (('decode', '(a) decoding alone'),
                       ('worker', '(b) worker: LoadCanvas'),
                       ('cpu_two_views', '(c) both views on the CPU'),
                       ('preprocessor', f'(d) preprocessor on {where}')):
        print(f'{text:<50} {result[name]:9.1f} images/s')
    print(f"(b) / (c) = {result['worker_over_cpu']:.2f}    "
          f"(b) / (a) = {result['worker_over_decode']:.2f}")
    if stored:
        for name, text in (('store_decode', '(a) of the store'),
                           ('store_worker', '(b) of the store')):
            print(f'{text:<50} {result[name]:9.1f} images/s')
        print('(b) of the store / (a) of the files = '
              f"{result['store_worker_over_decode']:.2f}    / (b) = "
              f"{result['store_worker_over_worker']:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
