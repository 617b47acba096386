"""What the quickstart does: data, k-NN, pre-training, k-NN, pictures."""
import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_tiles import make_tiles
from mmengine.config import Config
from mmengine.hooks import Hook

from cmae_mm.checkpoints import export_encoder
from cmae_mm.config import load_config
from cmae_mm.datasets.source import SourceError, open_source
from cmae_mm.engine import ResumableRunner
from cmae_mm.evaluation.features import FeatureSet, FrozenFeatures
from cmae_mm.evaluation.probes import knn_accuracy
from cmae_mm.visualization import (prediction_columns, read_run, save_grid,
                                   series)
from cmae_mm.visualization.runs import Run

CONFIG = 'quickstart/cmae_vit-mini_tiles'
KNN_K = 20


class Labels(NamedTuple):
    """Where k-NN finds labelled images; ``val`` is None for a held-out fifth.

    ``train`` and ``val`` are sub-folders of the data folder with one folder
    per class.
    """

    train: str
    val: str | None


def has_class_folders(folder: Path) -> bool:
    """Say whether a folder holds two or more folders of images."""
    try:
        source = open_source(folder, labels=True)
    except (FileNotFoundError, SourceError):
        return False
    return len(set(source.labels.tolist())) >= 2


def find_labels(data: Path) -> Labels | None:
    """Find class folders in the data; None where there are none."""
    if has_class_folders(data / 'train'):
        same = has_class_folders(data / 'val') and set(
            os.listdir(data / 'val')) == set(os.listdir(data / 'train'))
        return Labels('train', 'val' if same else None)
    return Labels('', None) if has_class_folders(data) else None


def evaluation_cfg(data: Path, labels: Labels) -> dict[str, dict]:
    """Say in a config where the labelled images are."""
    val = labels.train if labels.val is None else labels.val
    return {
        split: dict(type='LabelledDataset', data_root=str(data),
                    data_prefix=folder)
        for split, folder in (('train', labels.train), ('val', val))
    }


def hold_out(data: FeatureSet) -> tuple[FeatureSet, FeatureSet]:
    """Split features into those to train on, and each fifth one."""
    held_out = torch.arange(len(data.labels)) % 5 == 0
    return (FeatureSet(data.features[~held_out], data.labels[~held_out]),
            FeatureSet(data.features[held_out], data.labels[held_out]))


def measure_knn(model, cfg: Config, labels: Labels) -> float:
    """Measure k-NN top-1 in percent with the online encoder."""
    source = FrozenFeatures(model, cfg)
    train = source.extract('train')
    if labels.val is None:
        train, val = hold_out(train)
    else:
        val = source.extract('val')
    k = min(KNN_K, len(train.labels))
    return round(knn_accuracy(*train, *val, ks=(k, ))[k], 2)


def show_views(model, dataset, path: Path, count: int = 12) -> None:
    """Save reconstruction pictures of training images."""
    torch.manual_seed(0)
    np.random.seed(0)
    picked = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
    samples = [dataset[int(i)] for i in picked]
    batch = dict(
        inputs=torch.stack([s['inputs'] for s in samples]),
        data_samples=[s['data_samples'] for s in samples])
    views = model.data_preprocessor(batch, training=True)['inputs']
    save_grid(
        path, prediction_columns(model, views[0]), scale=2, per_row=2)


def save_loss_curve(path: Path, run: Run) -> None:
    """Draw the losses, and the cosines that show a collapse, as a PNG.

    Args:
        path (Path): The PNG.
        run (Run): See ``read_run``.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    losses, cosines = figure.subplots(1, 2)
    for axes, names, title in (
            (losses, ('loss', 'loss_rc', 'loss_ct'), 'losses'),
            (cosines, ('rho_pos', 'rho_neg'), 'cosine to the target')):
        for name in names:
            x, y = series(run, name)
            if x:
                axes.plot(x, y, label=name)
        axes.set(title=title, xlabel='iteration')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)


class ProgressHook(Hook):
    """Says a line of progress every few steps, with the time left.

    Args:
        say (Callable): Prints a line.
        interval (int): In steps. Defaults to 20.
    """

    def __init__(self, say: Callable[[str], None], interval: int = 20) -> None:
        self.say = say
        self.interval = interval

    def before_train(self, runner) -> None:
        """Start the clock."""
        self.start = time.time()

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        """Say how far it is."""
        done, total = runner.iter + 1, runner.max_iters
        if done % self.interval and done != total:
            return
        left = (time.time() - self.start) / done * (total - done)
        loss = float(outputs['loss'])
        self.say(f'  step {done} of {total}, loss {loss:.3f}, '
                 f'{describe_seconds(left)} left')


def describe_seconds(seconds: float) -> str:
    """Write a time for people: '1 min 20 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def build_config(args: argparse.Namespace, data: Path,
                 labels: Labels | None) -> Config:
    """Load the config and apply the command line."""
    os.environ['DATA_ROOT'] = str(data)
    cfg = load_config(CONFIG)
    if labels is not None:
        cfg.evaluation = evaluation_cfg(data, labels)
    cfg.work_dir, cfg.launcher = str(args.work_dir), 'none'
    if args.max_iters is not None:
        warmup = min(cfg.param_scheduler[0].end, args.max_iters // 4)
        cfg.merge_from_dict({
            'train_cfg.max_iters': args.max_iters,
            'default_hooks.logger.interval': min(20, args.max_iters),
            'param_scheduler.0.end': warmup,
            'param_scheduler.1.begin': warmup,
            'param_scheduler.1.end': args.max_iters,
            'param_scheduler.1.T_max': args.max_iters - warmup,
        })
        if warmup == 0:
            cfg.param_scheduler = cfg.param_scheduler[1:]
    return cfg


def run_steps(args: argparse.Namespace, say: Callable[[str], None],
              start: float) -> None:
    """Run all steps.

    Args:
        args (argparse.Namespace): The command line.
        say (Callable): Prints a line on the console.
        start (float): When the command was started, in seconds.
    """

    def step(number: int, text: str) -> None:
        taken = describe_seconds(time.time() - start)
        say(f'\n== {number}/5 {text} [{taken}]')

    step(1, 'Data')
    data = args.data
    if data is None:
        data = Path('data/tiles').resolve()
        say(f'{make_tiles(data)} tiles of photographs in data/tiles')
    labels = find_labels(data)

    step(2, 'Features at random initialisation')
    cfg = build_config(args, data, labels)
    runner = ResumableRunner.from_cfg(cfg)
    runner.register_hook(ProgressHook(say))
    model = runner.model
    model.init_weights()
    summary: dict[str, float | None] = dict(
        knn_top1=None, knn_top1_random_init=None)
    if labels is None:
        say('The data has no class folders: k-NN is left out.')
    else:
        summary['knn_top1_random_init'] = measure_knn(
            model, runner.cfg, labels)
        say(f"k-NN top-1: {summary['knn_top1_random_init']:.1f} %")

    step(3, 'Pre-training')
    runner.train()

    step(4, 'Features after pre-training')
    if labels is not None:
        summary['knn_top1'] = measure_knn(model, runner.cfg, labels)
        say(f"k-NN top-1: {summary['knn_top1']:.1f} %")

    step(5, 'Backbone, pictures, summary')
    out = args.work_dir
    export_encoder(model, str(out / 'backbone.pth'), recipe=CONFIG,
                   iterations=runner.iter)
    dataset = runner.train_dataloader.dataset
    show_views(model, dataset, out / 'reconstruction.png')
    run = read_run(out)
    losses = series(run, 'loss')[1]
    save_loss_curve(out / 'loss.png', run)
    summary.update(
        loss_first=round(losses[0], 4),
        loss_last=round(losses[-1], 4),
        images=len(dataset),
        minutes=round((time.time() - start) / 60, 2))
    (out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    say(json.dumps(summary, indent=2))
    say(f'In {out}: backbone.pth (for fine-tuning), reconstruction.png, '
        'loss.png, summary.json')
