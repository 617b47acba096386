"""BatchNorm over all ranks' images that works on CPUs.

torch's ``SyncBatchNorm`` has no kernels for CPUs and refuses their tensors.
This one computes what its documentation says, in a few lines: the statistics
of the images of all ranks, with the gradient that flows through them.
"""
import torch
import torch.distributed as dist
from mmpretrain.registry import MODELS
from torch import nn
from torch.distributed.nn.functional import all_reduce


@MODELS.register_module()
class GlooSyncBN(nn.BatchNorm1d):
    """``BatchNorm1d`` over the batches of all ranks, of equal size each."""

    _abbr_ = 'bn'

    def forward(self, x):
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        count = len(x) * dist.get_world_size()
        mean = all_reduce(x.sum(0)) / count
        var = all_reduce((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        x = (x - mean) / (var + self.eps).sqrt()
        return x if self.weight is None else x * self.weight + self.bias
