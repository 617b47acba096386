"""mmengine's runner of strategies, made to lose nothing."""
import time
from typing import Any, Callable, Dict, Optional, Union

import mmengine
from mmengine.dist import is_main_process
from mmengine.runner import FlexibleRunner
from mmengine.runner.checkpoint import save_checkpoint
from mmpretrain.registry import RUNNERS

from .resuming import Resuming


@RUNNERS.register_module()
class ResumableFlexibleRunner(Resuming, FlexibleRunner):
    """mmengine's ``FlexibleRunner``, for models that are sharded.

    Resuming, saving, stopping, seeds and strict loading are those of
    ``ResumableRunner``; see ``Resuming``. With ``FullyShardStrategy``,
    ``DDPStrategy`` and ``SingleDeviceStrategy`` its checkpoints are those of
    ``ResumableRunner`` too, and either goes on with the other's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        modules = self.cfg.get('activation_checkpointing')
        if modules:
            self.strategy.activation_checkpointing = modules

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build schedules, see ``Runner.build_param_scheduler``."""
        return self.strategy.build_param_scheduler(
            scheduler, self.optim_wrapper)

    def resume(self,
               filename: str,
               resume_optimizer: bool = True,
               resume_param_scheduler: bool = True,
               map_location: Union[str, Callable] = 'cpu') -> None:
        """Go on from a checkpoint, see ``FlexibleRunner.resume``.

        Raises:
            CheckpointError: If it holds no training state, or does not fit.
        """
        self._resume = True
        checkpoint = self.load_checkpoint(filename)
        meta = checkpoint['meta']
        self.train_loop._epoch, self.train_loop._iter = (
            meta['epoch'], meta['iter'])
        seed = meta.get('seed')
        if seed is not None and seed != self.seed:
            self._randomness_cfg.update(seed=seed)
            self.strategy._set_randomness(**self._randomness_cfg)
        if resume_optimizer:
            self.strategy.load_optim_state_dict(checkpoint['optimizer'])
        if resume_param_scheduler and self.param_schedulers is not None:
            self.strategy.load_scheduler_state_dict(
                checkpoint['param_schedulers'])
        self.message_hub.load_state_dict(checkpoint['message_hub'])
        self.logger.info(f'resumed epoch: {self.epoch}, iter: {self.iter}')

    def load_or_resume(self) -> None:
        """Go on from a checkpoint, or start; see ``Resuming``."""
        super().load_or_resume()
        self.optim_wrapper.initialize_count_status(
            self.model, self.iter, self.max_iters)

    def save_checkpoint(self,
                        out_dir: str,
                        filename: str,
                        file_client_args: Optional[dict] = None,
                        save_optimizer: bool = True,
                        save_param_scheduler: bool = True,
                        meta: Optional[Dict[str, Any]] = None,
                        by_epoch: bool = True,
                        backend_args: Optional[dict] = None) -> None:
        """Save as ``Runner`` does, where ``FlexibleRunner`` would otherwise.

        What is shared out is gathered: all processes have to take part.

        Args:
            out_dir (str): Folder of checkpoints.
            filename (str): Name of the file.
            file_client_args (dict, optional): Not supported.
            save_optimizer (bool): Whether the optimizer's state is saved.
                Defaults to True.
            save_param_scheduler (bool): Whether the state of schedules is
                saved. Defaults to True.
            meta (dict, optional): What else ``meta`` holds. Defaults to None.
            by_epoch (bool): Whether an epoch is at its end. Defaults to True.
            backend_args (dict, optional): mmengine's file backend. Defaults
                to None, local files.
        """
        meta = dict(meta or {})
        meta.setdefault('epoch', self.epoch + by_epoch)
        meta.setdefault('iter', self.iter + (not by_epoch))
        meta.update(
            cfg=self.cfg.pretty_text,
            seed=self.seed,
            experiment_name=self.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
            mmengine_version=mmengine.__version__)
        dataset = self.train_dataloader.dataset
        if hasattr(dataset, 'metainfo'):
            meta.update(dataset_meta=dataset.metainfo)
        checkpoint = dict(
            meta=meta,
            state_dict=self.strategy.model_state_dict(),
            message_hub=self.message_hub.state_dict())
        if save_optimizer:
            checkpoint['optimizer'] = self.strategy.optim_state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint['param_schedulers'] = (
                self.strategy.scheduler_state_dict())
        if not is_main_process():
            return
        self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
        save_checkpoint(
            checkpoint,
            mmengine.fileio.join_path(
                out_dir, filename, backend_args=backend_args),
            backend_args=backend_args)
