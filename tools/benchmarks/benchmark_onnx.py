#!/usr/bin/env python
"""Measure an encoder in ONNX Runtime beside torch, on the CPU (extra='onnx').

Both take the same single image (or batch), normalisation included, turn about,
round after round; medians of the rounds are reported, and the ratio is the
median of the rounds' ratios. Without CHECKPOINT a ViT of random weights is
measured, which takes the same time.

    python tools/benchmarks/benchmark_onnx.py --arch deit-small --threads 2
"""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'checkpoint', nargs='?', metavar='CHECKPOINT',
        help='what cmae_mm.load_encoder takes (default: random weights)')
    parser.add_argument(
        '--arch', default='base',
        help="mmpretrain's name of the ViT without CHECKPOINT (default: "
        '%(default)s)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N',
                        help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=1, metavar='N',
                        help='of each (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=15, metavar='N',
                        help='default: %(default)s')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write the file, and time both."""
    import onnxruntime
    import torch

    import cmae_mm
    from cmae_mm.apis.encoder import PretrainedEncoder
    from cmae_mm.checkpoints.onnx_export import DeployedEncoder, export_onnx
    from cmae_mm.models import TransferViT
    torch.set_num_threads(args.threads)
    if args.checkpoint:
        encoder = cmae_mm.load_encoder(args.checkpoint)
    else:
        torch.manual_seed(0)
        backbone = TransferViT(arch=args.arch, img_size=224, patch_size=16,
                               out_type='raw')
        encoder = PretrainedEncoder(backbone).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    images = torch.rand(
        args.batch_size, encoder.in_channels, encoder.img_size,
        encoder.img_size) * encoder.std + encoder.mean
    model = DeployedEncoder(encoder).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'encoder.onnx'
        difference = export_onnx(encoder, file)
        session = onnxruntime.InferenceSession(
            str(file), options, providers=['CPUExecutionProvider'])

    def in_torch() -> None:
        with torch.inference_mode():
            model(images)

    feed = dict(images=images.numpy())
    contenders = dict(torch=in_torch, onnxruntime=lambda: session.run(
        list(model.names), feed))
    rounds: list[dict[str, float]] = []
    for number in range(args.rounds + 2):  # the first two to warm up
        times = {}
        for name in list(contenders)[::-1 if number % 2 else 1]:
            start = time.perf_counter()
            contenders[name]()
            times[name] = 1000 * (time.perf_counter() - start)
        rounds.append(times)
    rounds = rounds[2:]
    return dict(
        {f'{name}_ms': statistics.median(r[name] for r in rounds)
         for name in contenders},
        speed_of_onnxruntime_over_torch=statistics.median(
            r['torch'] / r['onnxruntime'] for r in rounds),
        difference=difference, batch_size=args.batch_size,
        threads=args.threads, torch=torch.__version__,
        onnxruntime=onnxruntime.__version__)


if __name__ == '__main__':
    print(json.dumps(measure(read_arguments())))
