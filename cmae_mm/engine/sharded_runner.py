"""mmengine's flexible runner for sharded models."""
import copy
from typing import Any, Optional

from mmengine.runner._flexible_runner import FlexibleRunner
from mmpretrain.registry import RUNNERS

from .fully_shard_strategy import FullyShardStrategy
from .resuming import Resuming


@RUNNERS.register_module()
class ShardedRunner(Resuming, FlexibleRunner):
    """mmengine's ``FlexibleRunner`` with ``FullyShardStrategy``.

    Selected by ``runner_type='mmpretrain.ShardedRunner'``. The settings
    ``sync_bn``, ``activation_checkpointing`` and ``auto_scale_lr`` work as in
    ``ResumableRunner``. See ``Resuming`` for the additions to mmengine.

    Raises:
        ValueError: If the config names another strategy, or has ``compile``.
    """

    @classmethod
    def from_cfg(cls, cfg: Any) -> 'ShardedRunner':
        """Build a runner, see ``Resuming.from_cfg``."""
        strategy = dict(dict(type='FullyShardStrategy'),
                        **(cfg.get('strategy') or {}))
        if strategy['type'] not in ('FullyShardStrategy', FullyShardStrategy):
            raise ValueError(
                'ShardedRunner needs FullyShardStrategy, but the config has '
                f'strategy.type={strategy["type"]!r}; remove strategy, or set '
                "runner_type='FlexibleRunner'")
        if cfg.get('compile'):
            raise ValueError(
                'ShardedRunner does not compile: leave compile out, or train '
                'with the config without fsdp in its name')
        for name in ('sync_bn', 'activation_checkpointing'):
            if cfg.get(name):
                strategy.setdefault(name, cfg[name])
        cfg = copy.deepcopy(cfg)
        cfg.strategy = strategy
        return super().from_cfg(cfg)

    def build_strategy(self, *args: Any, **kwargs: Any) -> FullyShardStrategy:
        """Build the strategy, see ``FlexibleRunner.build_strategy``."""
        strategy = super().build_strategy(*args, **kwargs)
        strategy.read = self.load_checkpoint
        return strategy

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build schedules again, see ``Runner.build_param_scheduler``."""
        return self.strategy.build_param_scheduler(
            scheduler, self.strategy.optim_wrapper)

    def save_checkpoint(self,
                        out_dir: str,
                        filename: str,
                        meta: Optional[dict] = None,
                        backend_args: Optional[dict] = None,
                        **kwargs: Any) -> None:
        """Save a checkpoint, see ``FlexibleRunner.save_checkpoint``.

        mmengine's ignores ``meta`` and ``backend_args``.
        """
        self.strategy.saving = dict(
            meta=dict(meta or {}), backend_args=backend_args)
        super().save_checkpoint(out_dir, filename, meta=meta,
                                backend_args=backend_args, **kwargs)
