#!/usr/bin/env python
"""Measure a training step: images/s, FLOP, memory and time of its parts.

With --baseline, beside the straightforward composition of mmpretrain's parts
(step_baseline.py): both alternate, round after round, on batches of the same
size, and the medians of the rounds are reported. A step is everything from a
batch on the device to the moved target: views, both branches, backward pass,
optimizer, EMA. Images are random.

    python tools/benchmarks/benchmark_step.py --batch-size 8 --baseline

With --host, the time that the host takes, on a CPU too: as many layers, but 4
channels a head and 16 patches an image, so that kernels take little.
"""
import argparse
import json
import logging
import os
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DTYPES = ('bfloat16', 'float16', 'float32')


def read_arguments(arguments: Any = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', nargs='?', metavar='CONFIG',
        default=str(ROOT / 'configs/cmae_vit-b_300e.py'),
        help='config of a pre-training (default: %(default)s)')
    parser.add_argument(
        '--batch-size', type=int, metavar='N',
        help="images of a step (default: the config's)")
    parser.add_argument(
        '--baseline', action='store_true',
        help="measure the composition of mmpretrain's parts beside it")
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'],
        help='default: cuda where there is one')
    parser.add_argument(
        '--dtype', choices=DTYPES,
        help='of our step (default: bfloat16 on a GPU, float32 on a CPU). The '
        'baseline keeps its own: float16 on a GPU, float32 on a CPU')
    parser.add_argument(
        '--compile', nargs='?', const='default', metavar='MODE',
        help="compile our step; torch.compile's mode, for instance "
        'reduce-overhead for CUDA graphs (default: %(const)s)')
    parser.add_argument(
        '--host', action='store_true',
        help='narrow the model and its images; count the operators that '
        'launch kernels, and those that wait for the device')
    parser.add_argument(
        '--profile', nargs='?', const='step_trace.json', metavar='FILE',
        help='write a trace of our step, for chrome://tracing (default: '
        '%(const)s)')
    parser.add_argument('--json', metavar='FILE', help='write the results')
    parser.add_argument(
        '--rounds', type=int, default=10, metavar='N',
        help='default: %(default)s')
    parser.add_argument(
        '--clock', choices=['wall', 'cpu'], default='wall',
        help='on a CPU that others use as well: seconds of the processor that '
        'this process has had, per thread (default: wall)')
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build both steps and measure them."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from step_contenders import build_baseline, build_ours, narrow
    from step_timing import (Breakdown, Clock, PeakMemory, count_flop,
                             count_launches, matmul_peak, memory_bandwidth)

    import cmae_mm

    # The libraries tell of every parameter that they initialise.
    logging.disable(logging.WARNING)
    cmae_mm.register()
    init_default_scope('mmpretrain')
    if 'WORLD_SIZE' in os.environ:
        # Started as one of several ranks, on a CPU.
        torch.distributed.init_process_group('gloo')
    device = torch.device(
        args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    on_gpu = device.type == 'cuda'
    dtype = args.dtype or ('bfloat16' if on_gpu else 'float32')
    cfg = Config.fromfile(args.config)
    if args.host:
        narrow(cfg)
    batch_size = args.batch_size or cfg.train_dataloader.batch_size
    clock = Clock(device, args.clock == 'cpu')

    with PeakMemory(device) as memory:
        ours = build_ours(cfg, batch_size, device, dtype, args.compile)
        ours()
        clock.time(ours, 2)
    steps = dict(ours=ours)
    if args.baseline:
        steps['baseline'] = build_baseline(cfg, ours, device)
    for step in steps.values():
        clock.time(step, 2)
    repeats = 5 if on_gpu else 1
    rounds: list[dict[str, float]] = []
    for number in range(args.rounds):
        # Each goes first as often as the other.
        names = list(steps)[::-1 if number % 2 else 1]
        rounds.append({n: clock.time(steps[n], repeats) for n in names})
    median = {n: statistics.median(r[n] for r in rounds) for n in steps}
    peak = matmul_peak(clock, device, getattr(torch, dtype))

    parts = {}
    for name, step in steps.items():
        breakdown = Breakdown(clock, step.sites)
        found = [breakdown.of(step) for _ in range(min(args.rounds, 5))]
        parts[name] = {
            part: 1000 * statistics.median(f[part] for f in found)
            for part in found[0]}
    if args.profile:
        write_trace(ours, args.profile, on_gpu)
    # At last: what is compiled runs eagerly under the counters, and after it.
    launches, waits = count_launches(ours, ours.sites)
    flop = count_flop(ours)
    rate = {n: batch_size / seconds for n, seconds in median.items()}
    speed = flop / median['ours']
    result: dict[str, Any] = dict(
        ours=rate['ours'],
        baseline=rate.get('baseline'),
        ours_over_baseline=statistics.median(
            r['baseline'] / r['ours'] for r in rounds)
        if args.baseline else None,
        share_of_peak=speed / peak if on_gpu else None,
        peak_memory_mib=memory.mib,
        parts=parts['ours'],
        baseline_parts=parts.get('baseline'),
        step_ms=1000 * median['ours'],
        gflop_per_image=flop / batch_size / 1e9,
        tflop_per_s=speed / 1e12,
        matmul_tflop_per_s=peak / 1e12,
        memory_gb_per_s=memory_bandwidth(clock, device) / 1e9,
        parameters=sum(p.numel() for p in ours.model.parameters()
                       if p.requires_grad),
        config=str(args.config),
        batch_size=batch_size,
        dtype=dtype,
        compiled=args.compile,
        launches=sum(launches.values()),
        launches_of_parts=launches,
        waits=waits,
        device=torch.cuda.get_device_name(device) if on_gpu else 'cpu',
        threads=torch.get_num_threads(),
        clock='device' if on_gpu else args.clock)
    return result


def write_trace(step: Any, path: str, on_gpu: bool) -> None:
    """Write a trace of three steps, and print what took longest."""
    from torch.profiler import ProfilerActivity, profile
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(3):
            step()
    profiler.export_chrome_trace(path)
    order = 'self_cuda_time_total' if on_gpu else 'self_cpu_time_total'
    print(profiler.key_averages().table(sort_by=order, row_limit=25))
    print(f'trace: {path}')


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    where = result['device']
    if where == 'cpu':
        where = (f"CPU, {result['threads']} threads, {result['clock']} "
                 'clock')
    print(f"{result['config']}, batch {result['batch_size']}, "
          f"{result['dtype']}, compile: {result['compiled']}, {where}")
    print(f"ours       {result['ours']:10.2f} images/s, "
          f"{result['step_ms']:.1f} ms a step")
    if result['baseline']:
        print(f"baseline   {result['baseline']:10.2f} images/s; ours / "
              f"baseline = {result['ours_over_baseline']:.2f}")
    share = result['tflop_per_s'] / result['matmul_tflop_per_s']
    print(f"arithmetic {result['gflop_per_image']:10.2f} GFLOP an image, "
          f"{result['tflop_per_s']:.3f} TFLOP/s, {share:.0%} of the "
          f"{result['matmul_tflop_per_s']:.3f} of matrix products")
    print(f"memory     {result['peak_memory_mib']:10.0f} MiB at most")
    print(f"host       {result['launches']:10} operators of an eager step "
          f"launch kernels; waits: {', '.join(result['waits']) or 'none'}")
    print(f"\n{'part':<18}{'ours':>10}{'baseline':>10}{'launches':>10}  ms")
    theirs = result['baseline_parts'] or {}
    for part, ms in result['parts'].items():
        other = f'{theirs[part]:10.1f}' if part in theirs else ' ' * 10
        count = result['launches_of_parts'][part]
        print(f'{part:<18}{ms:10.1f}{other}{count:10}')


def main() -> None:
    """Measure and print."""
    args = read_arguments()
    sys.path[:0] = [str(HERE), str(ROOT)]
    result = measure(args)
    if os.environ.get('RANK', '0') != '0':
        return
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
    # Not above: --help need not wait for the libraries.
    from cmae_mm.cli.main import end_process_group
    end_process_group()
