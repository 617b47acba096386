"""mmengine's visualisation back ends, with what they need here.

Their libraries are imported when a run begins (extra='logging').
"""
import os
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend, WandbVisBackend
from mmpretrain.registry import VISBACKENDS

# What runs are gathered under, where nothing else is said.
PROJECT = 'cmae_mm'


def _work_dir(save_dir: str) -> Path:
    """Find the work folder, of which mmengine gives <time>/vis_data."""
    folder = Path(save_dir).absolute()
    return folder.parents[1] if folder.name == 'vis_data' else folder


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """mmengine's back end for Weights & Biases, which uploads no code.

    mmengine's uploads each Python file below the current folder. Curves are
    drawn over the iteration.

    Args:
        save_dir (str): Folder of the files that W&B writes.
        init_kwargs (dict, optional): Arguments of ``wandb.init``. Defaults to
            the project 'cmae_mm' and the work folder's name.
        **kwargs: Other arguments of ``WandbVisBackend``.
    """

    def __init__(self,
                 save_dir: str,
                 init_kwargs: Optional[dict] = None,
                 **kwargs: Any) -> None:
        named = dict(project=PROJECT, name=_work_dir(save_dir).name)
        kwargs.setdefault('define_metric_cfg',
                          [dict(name='*', step_metric='iter')])
        super().__init__(save_dir, named | (init_kwargs or {}), **kwargs)

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config."""
        run = self.experiment.run
        run.config.update(config.to_dict(), allow_val_change=True)


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """mmengine's back end for MLflow, with a store of its own.

    Without a server, which ``tracking_uri`` or the environment variable
    ``MLFLOW_TRACKING_URI`` names, a run is kept in ``mlflow.db`` in its work
    folder: recent versions of MLflow refuse the plain files that mmengine
    asks for. No file of the work folder is uploaded.

    Args:
        save_dir (str): Folder of the run's files.
        exp_name (str): Name of the experiment. Defaults to 'cmae_mm'.
        run_name (str, optional): Name of the run. Defaults to the work
            folder's.
        **kwargs: Other arguments of ``MLflowVisBackend``.
    """

    def __init__(self,
                 save_dir: str,
                 exp_name: str = PROJECT,
                 run_name: Optional[str] = None,
                 **kwargs: Any) -> None:
        folder = _work_dir(save_dir)
        super().__init__(save_dir, exp_name, run_name or folder.name, **kwargs)
        self._folder = folder

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
        """Record an image, uint8, (H, W, 3), RGB, as a file of its step."""
        self.experiment.log_image(image, f'{name}_{step:06d}.png')

    def add_scalars(self,
                    scalar_dict: Dict[str, Any],
                    step: int = 0,
                    file_path: Optional[str] = None,
                    **kwargs: Any) -> None:
        """Record figures; MLflow takes numbers alone."""
        super().add_scalars(
            {name: float(value) for name, value in scalar_dict.items()}, step)

    def close(self) -> None:
        """End the run."""
        if hasattr(self, '_mlflow'):
            self._mlflow.end_run()
