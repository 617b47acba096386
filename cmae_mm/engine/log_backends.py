"""Where a run's figures and pictures go, beside its own folder."""
from typing import Sequence

from mmengine.config import Config

_TYPES = dict(
    file='LocalVisBackend',
    tensorboard='TensorboardVisBackend',
    wandb='mmpretrain.WandbBackend',
    mlflow='mmpretrain.MLflowBackend')


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Let a run log to more places, in a config in place.

    The file in the work folder, which resuming and reports read, is always
    written.

    Args:
        cfg (Config): The config of a runner.
        names (Sequence[str]): 'tensorboard', 'wandb', 'mlflow' or 'file'
            each.
    """
    if not names:
        return
    visualizer = cfg.get('visualizer') or dict(type='Visualizer')
    backends = list(visualizer.get('vis_backends') or ())
    there = {str(b['type']).split('.')[-1] for b in backends}
    for name in dict.fromkeys(['file', *names]):
        if _TYPES[name].split('.')[-1] not in there:
            backends.append(dict(type=_TYPES[name]))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
