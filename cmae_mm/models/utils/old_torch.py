"""What torch 2.1 and 2.2 do wrong without a word."""
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor
from torch.optim import Optimizer

_VERSION = Version(torch.__version__).release
_GELU_IS_WRONG = _VERSION < (2, 2)
_LOSES_HOOKS = _VERSION < (2, 3)
_HOOKED = set()


def gelu(x: Tensor) -> Tensor:
    """Compute GELU, with gradients that are right in any layout.

    On CPUs torch 2.1 reads a transposed gradient beyond its memory.

    Args:
        x (Tensor): Any shape.

    Returns:
        Tensor: Of the same shape.
    """
    out = F.gelu(x)
    if _GELU_IS_WRONG and out.requires_grad and out.device.type == 'cpu':
        out.register_hook(Tensor.contiguous)
    return out


def keep_step_hooks(optimizer: Optimizer) -> None:
    """Let hooks of an optimizer's steps run when something is compiled, too.

    At the first ``torch.compile`` of a process torch 2.1 and 2.2 remove the
    code that runs them from all optimizers.

    Args:
        optimizer (Optimizer): An optimizer with hooks, before or after that.
    """
    if not _LOSES_HOOKS:
        return
    from torch._dynamo.eval_frame import TorchPatcher
    TorchPatcher.patch()  # what the first compilation does, once a process
    kind = next(c for c in type(optimizer).__mro__ if 'step' in vars(c))
    if kind.__module__.startswith('torch.optim.') and kind not in _HOOKED:
        kind.step = Optimizer.profile_hook_step(kind.step)
        kind.step.hooked = True
        _HOOKED.add(kind)
