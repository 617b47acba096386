"""Visualisation back ends for Weights & Biases and MLflow (extra='logging').

The libraries are imported at the start of a run.
"""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend, WandbVisBackend
from mmpretrain.registry import VISBACKENDS

from ..dependencies import name_of

# Default name of the project or experiment.
PROJECT = 'cmae_mm'
_BACKENDS = dict(
    file='LocalVisBackend',
    tensorboard='TensorboardVisBackend',
    wandb='mmpretrain.WandbBackend',
    mlflow='mmpretrain.MLflowBackend')


def _work_dir(save_dir: str) -> Path:
    """Return the work folder of mmengine's <time>/vis_data."""
    folder = Path(save_dir).absolute()
    return folder.parents[1] if folder.name == 'vis_data' else folder


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """Back end for Weights & Biases that does not upload code.

    ``WandbVisBackend`` uploads all Python files in the current folder. Here
    curves are plotted over the iteration.

    Args:
        save_dir (str): Folder of the files of W&B.
        init_kwargs (dict, optional): Arguments of ``wandb.init``. Defaults to
            the project 'cmae_mm' and the work folder's name.
        **kwargs: Other arguments of ``WandbVisBackend``.
    """

    def __init__(self,
                 save_dir: str,
                 init_kwargs: dict | None = None,
                 **kwargs: Any) -> None:
        named = dict(project=PROJECT, name=_work_dir(save_dir).name)
        kwargs.setdefault('define_metric_cfg',
                          [dict(name='*', step_metric='iter')])
        super().__init__(save_dir, named | (init_kwargs or {}), **kwargs)

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Log the config."""
        run = self.experiment.run
        run.config.update(config.to_dict(), allow_val_change=True)


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """Back end for MLflow with a database in the work folder.

    Without ``tracking_uri`` and the environment variable
    ``MLFLOW_TRACKING_URI``, a run is saved to ``mlflow.db`` in its work
    folder: recent versions of MLflow do not support the plain files of
    ``MLflowVisBackend``. No file of the work folder is uploaded.

    Args:
        save_dir (str): Folder of the run's files.
        **kwargs: Other arguments of ``MLflowVisBackend``. ``exp_name``
            defaults to 'cmae_mm', ``run_name`` to the work folder's name.
    """

    def __init__(self, save_dir: str, **kwargs: Any) -> None:
        self._folder = _work_dir(save_dir)
        names = dict(exp_name=PROJECT, run_name=self._folder.name)
        super().__init__(save_dir, **(names | kwargs))

    def _init_env(self) -> None:
        import mlflow
        uri = self._tracking_uri or os.environ.get('MLFLOW_TRACKING_URI')
        location = self._artifact_location
        if not uri:
            self._folder.mkdir(parents=True, exist_ok=True)
            uri = f'sqlite:///{self._folder}/mlflow.db'
            location = location or (self._folder / 'mlartifacts').as_uri()
        self._mlflow = mlflow
        mlflow.set_tracking_uri(uri)
        if mlflow.get_experiment_by_name(self._exp_name) is None:
            mlflow.create_experiment(self._exp_name, location)
        mlflow.set_experiment(self._exp_name)
        mlflow.start_run(run_name=self._run_name, tags=self._tags)
        if self._params is not None:
            mlflow.log_params(self._params)

    def add_image(self,
                  name: str,
                  image: np.ndarray,
                  step: int = 0,
                  **kwargs: Any) -> None:
        """Log an RGB image, uint8, (H, W, 3), as a file of its step."""
        self.experiment.log_image(image, f'{name}_{step:06d}.png')

    def add_scalars(self,
                    scalar_dict: dict[str, Any],
                    step: int = 0,
                    file_path: str | None = None,
                    **kwargs: Any) -> None:
        """Log scalars as floats."""
        super().add_scalars(
            {name: float(value) for name, value in scalar_dict.items()}, step)

    def close(self) -> None:
        """End the run."""
        if hasattr(self, '_mlflow'):
            self._mlflow.end_run()


def add_log_backends(cfg: Config, names: Sequence[str]) -> None:
    """Add visualisation back ends to a config, in place.

    The log file in the work folder, used by reports, is always written.

    Args:
        cfg (Config): The config of a runner.
        names (Sequence[str]): 'tensorboard', 'wandb', 'mlflow' or 'file'
            each.
    """
    if not names:
        return
    visualizer = cfg.get('visualizer') or dict(type='Visualizer')
    backends = list(visualizer.get('vis_backends') or ())
    there = {name_of(backend['type']) for backend in backends}
    for name in dict.fromkeys(['file', *names]):
        if name_of(_BACKENDS[name]) not in there:
            backends.append(dict(type=_BACKENDS[name]))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
