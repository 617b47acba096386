"""k-NN accuracy while pre-training runs."""
from typing import Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...evaluation.evaluator import FrozenFeatures
from ...evaluation.knn import knn_accuracy
from ..device import unwrapped_model
from ..sharding import whole_parameters


@HOOKS.register_module()
class KNNHook(Hook):
    """Evaluate the encoder by k-NN every few epochs.

    Labelled images are those of the config, see
    :func:`~cmae_mm.evaluation.eval_dataset_cfgs`. Features are kept in half
    precision. The hook does not change the training: it uses up none of its
    random numbers.

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
        ValueError: If the interval is not positive; before the first step,
            if there are no labelled images.
    """

    priority = 'LOW'

    def __init__(self,
                 interval: int = 10,
                 by_epoch: bool = True,
                 ks: Sequence[int] = (20, ),
                 encoder: str = 'online',
                 pool: str = 'mean',
                 batch_size: int = 256,
                 num_workers: int = 2) -> None:
        if interval < 1:
            raise ValueError(f'interval must be 1 or more, but got {interval}')
        self.interval = interval
        self.by_epoch = by_epoch
        self.ks = tuple(ks)
        self.options = dict(
            encoder=encoder,
            pool=pool,
            batch_size=batch_size,
            num_workers=num_workers,
            dtype=torch.float16)

    def before_train(self, runner) -> None:
        """Find the labelled images."""
        model = unwrapped_model(runner)
        self.source = FrozenFeatures(model, runner.cfg, **self.options)

    def after_train_epoch(self, runner) -> None:
        """Evaluate at the end of an epoch."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self._evaluate(runner, runner.epoch + 1, runner.iter)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Evaluate after an iteration."""
        if not self.by_epoch and (
                self.every_n_train_iters(runner, self.interval)
                or self.is_last_train_iter(runner)):
            self._evaluate(runner, runner.iter + 1, runner.iter + 1)

    def _evaluate(self, runner, step: int, iteration: int) -> None:
        with whole_parameters(unwrapped_model(runner)):
            accuracy = knn_accuracy(
                *self.source.extract('train'),
                *self.source.extract('val'),
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
