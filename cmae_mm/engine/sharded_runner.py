"""mmengine's flexible runner, for models that ranks share out."""
import copy
from typing import Any, Dict, Optional

from mmengine.runner._flexible_runner import FlexibleRunner
from mmpretrain.registry import RUNNERS

from .fully_shard_strategy import FullyShardStrategy
from .resuming import Resuming
from .sharing_strategy import SharingStrategy
from .zero_strategy import ZeroStrategy

_STRATEGIES = {s.__name__: s for s in (FullyShardStrategy, ZeroStrategy)}


@RUNNERS.register_module()
class ShardedRunner(Resuming, FlexibleRunner):
    """mmengine's ``FlexibleRunner`` with ``FullyShardStrategy``.

    Or with ``ZeroStrategy``, where the config says so.

    A config asks for it by ``runner_type='mmpretrain.ShardedRunner'``; it
    takes the settings ``sync_bn``, ``activation_checkpointing`` and
    ``auto_scale_lr`` as ``ResumableRunner`` does. See ``Resuming`` for what
    it adds to mmengine's.

    Raises:
        ValueError: If the config names another strategy, or has ``compile``.
    """

    @classmethod
    def from_cfg(cls, cfg: Any) -> 'ShardedRunner':
        """Build a runner, see ``Resuming.from_cfg``."""
        strategy = dict(dict(type='FullyShardStrategy'),
                        **(cfg.get('strategy') or {}))
        if strategy['type'] not in (*_STRATEGIES, *_STRATEGIES.values()):
            raise ValueError(
                'ShardedRunner shares a model out by '
                f'{" or ".join(_STRATEGIES)}, but the config has '
                f'strategy.type={strategy["type"]!r}; leave strategy out, or '
                "set runner_type='FlexibleRunner'")
        if cfg.get('compile'):
            raise ValueError(
                'ShardedRunner does not compile: leave compile out, or train '
                'with the config without fsdp or zero in its name')
        for name in ('sync_bn', 'activation_checkpointing'):
            if cfg.get(name):
                strategy.setdefault(name, cfg[name])
        cfg = copy.deepcopy(cfg)
        cfg.strategy = strategy
        return super().from_cfg(cfg)

    def build_strategy(self, *args: Any, **kwargs: Any) -> SharingStrategy:
        """Build the strategy, see ``FlexibleRunner.build_strategy``."""
        strategy = super().build_strategy(*args, **kwargs)
        strategy.read = self.load_checkpoint
        return strategy

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any
                        ) -> Dict[str, Any]:
        """Load a checkpoint, see ``Resuming.load_checkpoint``."""
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        self.strategy.after_loading()
        return checkpoint

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build schedules anew, as ``Runner.build_param_scheduler`` does."""
        return self.strategy.build_param_scheduler(
            scheduler, self.strategy.optim_wrapper)

    def save_checkpoint(self,
                        out_dir: str,
                        filename: str,
                        meta: Optional[dict] = None,
                        backend_args: Optional[dict] = None,
                        **kwargs: Any) -> None:
        """Save a checkpoint, see ``FlexibleRunner.save_checkpoint``.

        Here ``meta`` is heeded, and the file backend that is asked for.
        """
        self.strategy.saving = dict(
            meta=dict(meta or {}), backend_args=backend_args)
        super().save_checkpoint(out_dir, filename, meta=meta,
                                backend_args=backend_args, **kwargs)
