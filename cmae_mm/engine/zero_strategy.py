"""mmengine's distributed strategy, with DeepSpeed's ZeRO 1 and 2."""
import importlib.util
from typing import Any, Optional

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from torch import nn

from ..dependencies import MissingLibrary
from ..packaged import install_command
from .optimizers import skipping_steps
from .sharing_strategy import SharingStrategy
from .zero_optimizer import ZeroOptimizer

# Of float32 values; DeepSpeed's own, 2 GB, are larger than a ViT-L.
_BUCKET = 25_000_000
_WRAPPERS = ('AutoAmpOptimWrapper', 'mmpretrain.AutoAmpOptimWrapper')


@STRATEGIES.register_module()
class ZeroStrategy(SharingStrategy):
    """Shares optimizer state, and gradients, out by DeepSpeed's ZeRO.

    In the place of mmengine's ``DeepSpeedStrategy``, whose checkpoints are
    folders that other commands do not read, and whose half precision would
    cast the target. Parameters stay whole on each rank, in float32, the
    target's too, which each rank moves by itself; half precision is
    ``AutoAmpOptimWrapper``'s autocast. It is ``ShardedRunner``'s.

    Args:
        stage (int): 1, optimizer state is shared out, or 2, gradients too.
            Defaults to 2.
        **kwargs: Arguments of ``SharingStrategy``.

    Raises:
        MissingLibrary: If DeepSpeed is not installed.
        ValueError: If no launcher has started this process, the stage is
            another, or settings are asked for that it does not have.
    """

    def __init__(self, *, stage: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if importlib.util.find_spec('deepspeed') is None:
            raise MissingLibrary(
                'ZeroStrategy needs DeepSpeed, which is not installed: '
                f'install it with `{install_command("deepspeed")}`, or train '
                'with the config with fsdp in its name')
        if stage not in (1, 2):
            raise ValueError(
                f'ZeroStrategy has stages 1 and 2, but got {stage!r}; to '
                'share parameters out, too, take FullyShardStrategy')
        if not dist.is_initialized():
            raise ValueError(
                'ZeroStrategy shares an optimizer out between ranks, but this '
                'is one process alone; start it with tools/dist_train.sh '
                'CONFIG GPUS')
        self.stage = stage

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        return self.convert_model(model).to(get_device())

    def build_optim_wrapper(self, optim_wrapper: Any,
                            model: Optional[nn.Module] = None
                            ) -> BaseOptimWrapper:
        """Build an optimizer wrapper, see ``DDPStrategy``.

        Raises:
            ValueError: If it is of another kind, trains in float16,
                accumulates gradients, clips otherwise than by the 2-norm, or
                its optimizer is not AdamW; or if the model computes
                micro-batches.
        """
        settings = skipping_steps(optim_wrapper)
        kind = settings.get('type') if isinstance(settings, dict) else None
        name = getattr(kind, '__name__', kind)
        if name not in _WRAPPERS:
            raise ValueError(
                'ZeroStrategy needs optim_wrapper.type='
                f"'mmpretrain.AutoAmpOptimWrapper', but got {name!r}")
        if settings.get('dtype') == 'float16':
            raise ValueError(
                'ZeroStrategy has no loss scaler for float16; set '
                "optim_wrapper.dtype='bfloat16' or 'float32'")
        built = super().build_optim_wrapper(
            dict(settings, type='mmpretrain.ZeroOptimWrapper'), model)
        assert model is not None
        self._check(built, model)
        clip = built.clip_grad_kwargs or {}
        built.optimizer = ZeroOptimizer(
            built.optimizer, model, dict(
                train_micro_batch_size_per_gpu=self.dispatch_kwargs[
                    'train_micro_batch_size_per_gpu'],
                gradient_accumulation_steps=1,
                gradient_clipping=float(clip.get('max_norm', 0.)),
                zero_allow_untested_optimizer=True,
                zero_optimization=dict(
                    stage=self.stage, contiguous_gradients=True,
                    reduce_bucket_size=_BUCKET,
                    allgather_bucket_size=_BUCKET),
                # DeepSpeed's own lines; the log has the framework's
                steps_per_print=1 << 40))
        return built

    def _check(self, wrapper: BaseOptimWrapper, model: nn.Module) -> None:
        if wrapper._accumulative_counts != 1:
            raise ValueError(
                'ZeroStrategy does not accumulate gradients; leave '
                'optim_wrapper.accumulative_counts out, or take '
                'FullyShardStrategy')
        if type(wrapper.optimizer) is not torch.optim.AdamW:
            raise ValueError(
                'ZeroStrategy shares the state of torch.optim.AdamW out, but '
                'optim_wrapper.optimizer is '
                f'{type(wrapper.optimizer).__name__}; set its type to '
                "'AdamW', or take FullyShardStrategy")
        if any(g['amsgrad'] for g in wrapper.optimizer.param_groups):
            raise ValueError(
                'ZeroStrategy keeps two moments of a parameter, but AdamW has '
                'amsgrad=True; leave it out, or take FullyShardStrategy')
        if getattr(model, 'micro_batch', None):
            raise ValueError('ZeroStrategy computes no micro-batches; leave '
                             'model.micro_batch out, or take '
                             'FullyShardStrategy')
        clip = wrapper.clip_grad_kwargs or {}
        if clip and (clip.get('norm_type', 2) != 2 or 'max_norm' not in clip):
            raise ValueError('ZeroStrategy clips by the 2-norm; set '
                             'optim_wrapper.clip_grad=dict(max_norm=...), or '
                             'take FullyShardStrategy')

    def after_loading(self) -> None:
        """Take the parameters over: DeepSpeed updates copies of its own."""
        if hasattr(self, 'optim_wrapper'):
            optimizer = self.optim_wrapper.optimizer
            optimizer.engine.optimizer.refresh_fp32_params()
