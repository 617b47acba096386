"""Mixed precision that one config can ask for on every machine."""
from contextlib import contextmanager
from typing import Union

import torch
from mmengine.device import (
    is_cuda_available,
    is_mlu_available,
    is_musa_available,
    is_npu_available,
)
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import nn

DTYPES = ('bfloat16', 'float16', 'float32')


def has_accelerator() -> bool:
    """Say whether there is a device that mmengine can autocast on."""
    return (is_cuda_available() or is_npu_available() or is_mlu_available()
            or is_musa_available())


@OPTIM_WRAPPERS.register_module()
class AutoAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` that fits itself to dtype and machine.

    bfloat16 trains without a loss scaler, which it does not need; float16
    with one; and without an accelerator, where ``AmpOptimWrapper`` refuses to
    work, training is in float32 and the log says so.

    Args:
        dtype (str): 'bfloat16', 'float16' or 'float32'. Defaults to
            'bfloat16'.
        loss_scale (str | float | dict): For float16, see ``AmpOptimWrapper``.
            Defaults to 'dynamic'.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If the dtype is none of these.
    """

    def __init__(self,
                 dtype: str = 'bfloat16',
                 loss_scale: Union[str, float, dict] = 'dynamic',
                 **kwargs) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {DTYPES}, but got '
                             f'{dtype!r}')
        if dtype != 'float32' and not has_accelerator():
            print_log(
                f'No accelerator found: training in float32 instead of '
                f'{dtype}.',
                logger='current')
            dtype = 'float32'
        self.autocasts = dtype != 'float32'
        if self.autocasts:
            if dtype == 'bfloat16':
                loss_scale = dict(enabled=False)
            super().__init__(loss_scale=loss_scale, dtype=dtype, **kwargs)
        else:
            OptimWrapper.__init__(self, **kwargs)
            self._scale_update_param = None
            self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
            self.cast_dtype = torch.float32

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast, where this wrapper does, and hold back gradient syncs."""
        context = AmpOptimWrapper if self.autocasts else OptimWrapper
        with context.optim_context(self, model):
            yield
