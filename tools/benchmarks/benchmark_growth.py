#!/usr/bin/env python
"""Measure how time and memory of a step grow, and draw it beside the limits.

Runs benchmark_step.py on one setting after the other, each in processes of
its own: models, sizes of images, batches, and ranks that talk through gloo
(with several, each rank trains on its own batch and gradients are averaged).
Results are saved to a JSON file, and the same command continues where it was
stopped. The plot shows the time an image takes beside the least that the
arithmetic (the measured peak of matrix products) and the memory traffic
(parameters, gradients and the optimizer's state, at the measured bandwidth)
allow, and the memory.

    python tools/benchmarks/benchmark_growth.py --batch-sizes 4 8 16
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODELS = {
    'vit-s': 'cmae_vit-s_300e', 'vit-b': 'cmae_vit-b_300e',
    'vit-l': 'cmae_vit-l_800e', 'convvit-b': 'cmae_convvit-b_300e'}
# Bytes of a parameter that a step must move at least, in float32: read
# weights, write and read gradients, read and write weights, both moments of
# Adam, and the target's average of it.
BYTES_MOVED = 4 * (1 + 2 + 2 + 4 + 2)
Results = dict[str, dict[str, Any]]


def read_arguments(arguments: Any = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=[*MODELS],
                        default=[*MODELS])
    parser.add_argument('--sizes', nargs='+', type=int, default=[224, 384],
                        metavar='PIXELS')
    parser.add_argument('--batch-sizes', nargs='+', type=int,
                        default=[64, 128, 256, 512], metavar='N')
    parser.add_argument('--ranks', nargs='+', type=int, default=[1],
                        metavar='N', help='more than 1 on a CPU only')
    parser.add_argument(
        '--compile', nargs='+', default=['eager'], metavar='MODE',
        help='eager, default, reduce-overhead (CUDA graphs), ...')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', choices=['cpu', 'cuda'])
    parser.add_argument('--dtype')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override settings of the configs')
    parser.add_argument(
        '--results', type=Path, default=Path('work_dirs/growth.json'))
    parser.add_argument('--plot', type=Path,
                        default=Path('work_dirs/growth.png'))
    return parser.parse_args(arguments)


def write_config(args: argparse.Namespace, model: str, size: int,
                 path: Path) -> None:
    """Write a model's config for images of a size."""
    from cmae_mm.config import load_config
    cfg = load_config(
        str(ROOT / f'configs/{MODELS[model]}.py'), args.cfg_options)
    cfg.model.backbone.img_size = size
    cfg.data_preprocessor.update(
        size=size, canvas_size=size + cfg.data_preprocessor.get(
            'max_shift', 32))
    path.write_text(cfg.pretty_text)


def measure(args: argparse.Namespace, model: str, size: int, batch: int,
            ranks: int, mode: str) -> dict[str, Any]:
    """Run the benchmark of a step, on each rank; give rank 0's results."""
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / 'config.py', Path(folder) / 'out.json'
        write_config(args, model, size, config)
        command = [sys.executable, str(HERE / 'benchmark_step.py'),
                   str(config), '--batch-size', str(batch), '--rounds',
                   str(args.rounds), '--json', str(out)]
        for option in ('device', 'dtype'):
            if getattr(args, option):
                command += [f'--{option}', getattr(args, option)]
        if mode != 'eager':
            command += ['--compile', mode]
        if ranks > 1:
            command[1:1] = ['-m', 'torch.distributed.run', '--standalone',
                            '--nproc_per_node', str(ranks)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=dict(
                os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path])
            ))
        if done.returncode:
            # Mostly memory: larger settings may fail, others continue.
            last = (done.stderr.strip().splitlines() or ['no word'])[-1]
            return dict(failed=last[-200:])
        result: dict[str, Any] = json.loads(out.read_text())
    return dict(result, model=model, size=size, ranks=ranks)


def measure_all(args: argparse.Namespace) -> Results:
    """Measure what is not measured yet, and keep each result at once."""
    results: Results = {}
    if args.results.exists():
        results = json.loads(args.results.read_text())
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for model, size, batch, ranks, mode in product(
            args.models, args.sizes, args.batch_sizes, args.ranks,
            args.compile):
        key = f'{model} {size} px, batch {batch}, {ranks} rank(s)'
        key += '' if mode == 'eager' else f', {mode}'
        if key in results:
            continue
        results[key] = measure(
            args, model, size, batch, ranks, mode)
        aside = args.results.with_suffix('.part')
        aside.write_text(json.dumps(results, indent=2) + '\n')
        aside.replace(args.results)
        print(f'{key}: ' + describe(results[key]), flush=True)
    return results


def describe(result: dict[str, Any]) -> str:
    """Say a result in a line."""
    if 'failed' in result:
        return f"failed: {result['failed']}"
    return (f"{result['step_ms']:.0f} ms, {result['ours']:.2f} images/s a "
            f"rank, {result['peak_memory_mib']:.0f} MiB")


def limits(result: dict[str, Any]) -> dict[str, float]:
    """Give the least milliseconds an image, by arithmetic and by memory."""
    moved = result['parameters'] * BYTES_MOVED / result['batch_size']
    return dict(
        arithmetic=result['gflop_per_image'] / result['matmul_tflop_per_s'],
        memory=1e3 * moved / (result['memory_gb_per_s'] * 1e9))


def draw(results: Results, path: Path) -> None:
    """Draw time and memory over the batch, beside the limits."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results.values():
        if 'failed' not in result:
            name = f"{result['model']}, {result['size']} px"
            if result['ranks'] > 1:
                name += f", {result['ranks']} ranks"
            name += f", {result['compiled']}" if result['compiled'] else ''
            groups.setdefault(name, []).append(result)
    if not groups:
        raise SystemExit('nothing could be measured, so that there is '
                         'nothing to draw')
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(13, 5))
    for name, rows in groups.items():
        rows.sort(key=lambda row: row['batch_size'])
        sizes = [row['batch_size'] for row in rows]
        colour = time.plot(
            sizes, [row['step_ms'] / row['batch_size'] for row in rows], 'o-',
            label=name)[0].get_color()
        for limit, style in (('arithmetic', '--'), ('memory', ':')):
            time.plot(sizes, [limits(row)[limit] for row in rows], style,
                      color=colour, linewidth=1)
        memory.plot(sizes, [row['peak_memory_mib'] / 1024 for row in rows],
                    'o-', color=colour)
    time.set_ylabel('ms an image')
    time.set_title('dashed: arithmetic at least, dotted: memory traffic',
                   fontsize='medium')
    memory.set_ylabel('peak memory of a rank, GiB')
    for axes in (time, memory):
        axes.set_xlabel('batch of a rank')
        axes.set_xscale('log', base=2)
        axes.xaxis.set_major_formatter('{x:g}')
        axes.grid(alpha=0.3)
    time.set_yscale('log')
    memory.set_ylim(bottom=0)
    figure.legend(*time.get_legend_handles_labels(), loc='center right',
                  fontsize='small')
    row = next(iter(groups.values()))[0]
    figure.suptitle(f"{row['device']}, {row['dtype']}, {row['threads']} "
                    'thread(s)')
    figure.tight_layout(rect=(0, 0, 0.85, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measure and draw."""
    args = read_arguments()
    sys.path[:0] = [str(HERE), str(ROOT)]
    draw(measure_all(args), args.plot)
    print(f'{args.results}, {args.plot}')


if __name__ == '__main__':
    main()
