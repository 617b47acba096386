"""A linear classifier that is trained beside the pre-training."""
from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from ...datasets.datasets import count_classes
from ..device import unwrapped_model


@HOOKS.register_module()
class OnlineProbeHook(Hook):
    """Train a linear classifier on detached features of each batch.

    The features are the target branch's, of the whole augmented image (for
    MAE, which has no target, the mean of the visible tokens). The classifier,
    a BatchNorm without affine parameters and a linear layer, has its own
    optimizer and does not change the pre-training. Its loss and accuracy
    before each of its steps, on images that are new in this epoch, are logged
    as ``probe_loss`` and ``probe_top1``. The training data needs labels:
    ``train_dataloader.dataset.with_label=True``.

    Args:
        num_classes (int): Number of classes.
        lr (float): Learning rate of SGD, for a batch of 256 over all
            processes. Defaults to 0.1.
        momentum (float): Momentum of SGD. Defaults to 0.9.

    Raises:
        ValueError: Before the first step, if the data has no labels, or
            labels beyond ``num_classes``.
    """

    def __init__(self,
                 num_classes: int,
                 lr: float = 0.1,
                 momentum: float = 0.9) -> None:
        if num_classes < 2:
            raise ValueError(
                f'num_classes must be 2 or more, but got {num_classes}')
        self.num_classes = num_classes
        self.lr = lr
        self.momentum = momentum
        self._features: Optional[Tensor] = None
        self._resumed: Optional[Dict[str, Any]] = None

    def before_train(self, runner) -> None:
        """Build the classifier and register hooks on the features."""
        self._check_labels(runner.train_dataloader.dataset)
        model = unwrapped_model(runner)
        width = model.backbone.embed_dims
        # Initialisation must not draw the training's random numbers.
        with torch.random.fork_rng(devices=[]):
            linear = nn.Linear(width, self.num_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        device = next(model.parameters()).device
        self.probe = nn.Sequential(
            nn.BatchNorm1d(width, affine=False), linear).to(device)
        total = runner.train_dataloader.batch_size * get_world_size()
        self.optimizer = torch.optim.SGD(
            self.probe.parameters(),
            self.lr * total / 256,
            momentum=self.momentum)
        if self._resumed is not None:
            self.probe.load_state_dict(self._resumed['probe'])
            self.optimizer.load_state_dict(self._resumed['optimizer'])
        if model.target is not None:
            self._handle = model.target.projector.register_forward_pre_hook(
                lambda module, args: self._take(module, args[0][-1]))
        else:
            self._handle = model.backbone.register_forward_hook(
                lambda module, args, out: self._take(
                    module, out[0][:, model.backbone.num_extra_tokens:].mean(
                        dim=1)))

    def _check_labels(self, dataset) -> None:
        try:
            count = count_classes(dataset)
        except ValueError as error:
            raise ValueError(
                'OnlineProbeHook needs a labelled training data set: set '
                'train_dataloader.dataset.with_label=True, with class folders '
                f'in the data folder, or leave the hook out ({error})'
            ) from error
        if count > self.num_classes:
            raise ValueError(
                f'OnlineProbeHook has num_classes={self.num_classes}, but the '
                f'training data has {count} classes')

    def _take(self, module: nn.Module, features: Tensor) -> None:
        if module.training:
            self._features = features.detach().float()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Train the classifier for one step."""
        features: Any = self._features
        self._features = None
        labels = torch.tensor(
            [int(s.gt_label) for s in data_batch['data_samples']],
            device=features.device)
        # Images that are not finite would make the classifier nan.
        sound = features.isfinite().all(dim=1, keepdim=True)
        logits = self.probe(features.where(sound, 0.))
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.probe.parameters():
            all_reduce(parameter.grad, op='mean')
        self.optimizer.step()
        top1 = 100 * (logits.argmax(dim=1) == labels).float().mean()
        hub = runner.message_hub
        hub.update_scalar('train/probe_loss', loss.detach())
        hub.update_scalar('train/probe_top1', top1)

    def after_train(self, runner) -> None:
        """Remove the hook on the features."""
        self._handle.remove()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Store the classifier in the checkpoint."""
        checkpoint['online_probe'] = dict(
            probe=self.probe.state_dict(),
            optimizer=self.optimizer.state_dict())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Resume the classifier with the training."""
        if runner._resume:
            self._resumed = checkpoint.get('online_probe')
