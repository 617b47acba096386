"""k-NN, linear probe and pictures during pre-training."""
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from ...datasets.datasets import count_classes
from ...datasets.listing import evenly_spaced
from ...datasets.samplers import SeededIndex, mix_seeds, seed_generators
from ...models import CMAE
from ...models.utils import is_sharded
from ..device import unwrapped_model
from ..model_options import full_parameters


class IntervalHook(Hook):
    """Base class of hooks that run at an interval and at the end.

    Args:
        interval (int): Number of epochs or iterations.
        by_epoch (bool): Whether the interval counts epochs.

    Raises:
        ValueError: If the interval is not positive.
    """

    priority = 'LOW'

    def __init__(self, interval: int, by_epoch: bool) -> None:
        if interval < 1:
            raise ValueError(f'interval must be 1 or more, but got {interval}')
        self.interval = interval
        self.by_epoch = by_epoch

    def act(self, runner, step: int, iteration: int) -> None:
        """Run after an epoch or an iteration.

        Args:
            runner (Runner): The runner.
            step (int): Number of finished epochs, or of finished iterations
                without ``by_epoch``.
            iteration (int): Number of finished iterations.
        """
        raise NotImplementedError

    def after_train_epoch(self, runner) -> None:
        """Run at the end of an epoch."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self.act(runner, runner.epoch + 1, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Run after an iteration."""
        if not self.by_epoch and (
                self.every_n_train_iters(runner, self.interval)
                or self.is_last_train_iter(runner)):
            self.act(runner, runner.iter + 1, runner.iter + 1)


@HOOKS.register_module()
class KNNHook(IntervalHook):
    """Evaluate the encoder with k-NN every few epochs.

    Uses the labelled images of the config, see
    :func:`~cmae_mm.evaluation.data.configured_images`, and features in half
    precision. The hook does not change the training or its random numbers.

    Args:
        interval (int): Number of epochs between evaluations, or of iterations
            without ``by_epoch``; there is always one at the end. Defaults to
            10.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
        ks (Sequence[int]): Numbers of neighbours. Defaults to (20, ).
        encoder (str): 'online' or 'target'. Defaults to 'online'.
        pool (str): 'mean' of the patch tokens, or 'cls', the class token.
            Defaults to 'mean'.
        batch_size (int): Images in a batch of each process. Defaults to 256.
        num_workers (int): Data workers of each process. Defaults to 2.

    Raises:
        ValueError: If the interval or a number of neighbours is not
            positive; before the first step, if there are no labelled images.
    """

    def __init__(self,
                 interval: int = 10,
                 by_epoch: bool = True,
                 ks: Sequence[int] = (20, ),
                 encoder: str = 'online',
                 pool: str = 'mean',
                 batch_size: int = 256,
                 num_workers: int = 2) -> None:
        super().__init__(interval, by_epoch)
        if not ks or min(ks) < 1:
            raise ValueError(f'ks must be numbers of 1 or more, but got {ks}')
        self.ks = tuple(ks)
        self.options = dict(
            encoder=encoder, pool=pool, batch_size=batch_size,
            num_workers=num_workers, dtype=torch.float16)

    def before_train(self, runner) -> None:
        """Find the labelled images."""
        from ...evaluation.features import FrozenFeatures
        self.source = FrozenFeatures(
            unwrapped_model(runner), runner.cfg, **self.options)

    def act(self, runner, step: int, iteration: int) -> None:
        """Evaluate."""
        from ...evaluation.probes import knn_accuracy
        with full_parameters(unwrapped_model(runner)):
            accuracy = knn_accuracy(
                *self.source.extract('train'), *self.source.extract('val'),
                ks=self.ks)
        scalars = {f'knn/top1_k{k}': value for k, value in accuracy.items()}
        runner.visualizer.add_scalars(
            {'iter': iteration, **scalars}, step=step)
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        described = ', '.join(f'{v:.2f} % (k={k})'
                              for k, v in accuracy.items())
        runner.logger.info(
            f'k-NN top-1 after {"epoch" if self.by_epoch else "iteration"} '
            f'{step}: {described}')


@HOOKS.register_module()
class ReconstructionHook(IntervalHook):
    """Draw reconstructions of a few fixed images.

    The picture has the columns of ``cmae reconstruct`` and goes to the
    visualisation back ends as ``reconstruction``; the local back end writes it
    to ``vis_image``. The hook does not change the training or its random
    numbers.

    Args:
        interval (int): Number of epochs between pictures, or of iterations
            without ``by_epoch``; there is always one at the end. Defaults to
            50.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
        num_images (int): Number of images, evenly spaced over the training
            data. Defaults to 6.
        channels (Sequence[int], optional): Three channels to show as red,
            green and blue, or one to show in grey, numbered from 0. Defaults
            to None: three channels as RGB, the mean of any other number in
            grey.

    Raises:
        ValueError: If a number is not positive, or, before training, if the
            model is not a CMAE.
    """

    def __init__(self,
                 interval: int = 50,
                 by_epoch: bool = True,
                 num_images: int = 6,
                 channels: Sequence[int] | None = None) -> None:
        super().__init__(interval, by_epoch)
        if num_images < 1:
            raise ValueError(
                f'num_images must be 1 or more, but got {num_images}')
        self.num_images = num_images
        self.channels = channels

    def before_train(self, runner) -> None:
        """Check the model; drop images of an earlier training."""
        if not isinstance(unwrapped_model(runner), CMAE):
            raise ValueError('ReconstructionHook needs a CMAE; remove the '
                             'hook')
        self._images: Tensor | None = None

    def act(self, runner, step: int, iteration: int) -> None:
        """Draw."""
        from ...visualization import (draw_grid, fitting_scale,
                                      prediction_columns)
        model = unwrapped_model(runner)
        if not (is_main_process() or is_sharded(model)):
            return
        with full_parameters(model), preserve_rng_state():
            if self._images is None:
                self._images = self._load(runner, model)
            images = self._images.to(next(model.parameters()).device)
            torch.manual_seed(0)
            mask = model.backbone.generate_mask(len(images), 'cpu').to(
                images.device)
            columns = prediction_columns(model, images, mask, self.channels)
        sheet = draw_grid(columns, fitting_scale(max(images.shape[2:]), 128))
        if is_main_process():
            runner.visualizer.add_image('reconstruction', np.asarray(sheet),
                                        step=step)

    def _load(self, runner, model: CMAE) -> Tensor:
        """Load the online views of some images, with constant seeds."""
        dataset = runner.train_dataloader.dataset
        samples = []
        for index in evenly_spaced(len(dataset), self.num_images):
            seed_generators(mix_seeds(0, index))
            samples.append(dataset[SeededIndex(index, mix_seeds(0, index))])
        collate = runner.train_dataloader.collate_fn or pseudo_collate
        views = model.data_preprocessor(collate(samples), True)['inputs']
        online = views if isinstance(views, Tensor) else views[0]
        return online.detach().cpu()


@HOOKS.register_module()
class OnlineProbeHook(Hook):
    """Train a linear classifier on detached features of each batch.

    Uses the features of the target branch, from the whole augmented image; for
    MAE, which has no target, the mean of the visible tokens. The classifier, a
    BatchNorm without affine parameters and a linear layer, has its own
    optimizer and does not change the pre-training. Loss and accuracy on each
    new batch, before the step on it, are logged as ``probe_loss`` and
    ``probe_top1``. Needs labels in the training data:
    ``train_dataloader.dataset.with_label=True``.

    Args:
        num_classes (int): Number of classes.
        lr (float): Learning rate of SGD with momentum, for a batch of 256
            over all processes. Defaults to 0.1.

    Raises:
        ValueError: Before the first step, if the data has no labels, or
            labels beyond ``num_classes``.
    """

    def __init__(self,
                 num_classes: int,
                 lr: float = 0.1) -> None:
        if num_classes < 2:
            raise ValueError(
                f'num_classes must be 2 or more, but got {num_classes}')
        self.num_classes = num_classes
        self.lr = lr
        self._features: Tensor | None = None
        self._resumed: dict[str, Any] | None = None

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
            momentum=0.9)
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
                f'in the data folder, or remove the hook ({error})'
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
        # Non-finite features would make the classifier nan.
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


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the random states of ``random``, numpy and torch on exit.

    Includes the generators of all GPUs in use.
    """
    states = random.getstate(), np.random.get_state()
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if in_use else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
