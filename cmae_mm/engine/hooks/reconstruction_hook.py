"""Pictures of reconstructions while pre-training goes on."""
from typing import Optional, Sequence

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...datasets.samplers import SeededIndex, mix, seed_generators
from ...models import CMAE
from ...models.utils import is_sharded
from ...visualization import (
    draw_sheet,
    fitting_scale,
    prediction_columns,
)
from ..device import unwrapped_model
from ..random_state import keep_generators
from ..sharding import whole_parameters


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw what the model makes of a few images, always the same ones.

    The picture goes to the visualisation back ends as ``reconstruction``: the
    file's one to ``vis_image`` beside the scalars. It has the columns of
    ``cmae reconstruct``. The hook does not change the training: it uses up
    none of its random numbers.

    Args:
        interval (int): Number of epochs between pictures, or of iterations
            without ``by_epoch``; there is always one at the end. Defaults to
            50.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
        num_images (int): Number of images, evenly spaced over the training
            data. Defaults to 6.
        channels (Sequence[int], optional): The three channels that are shown
            as red, green and blue, or the one in grey, numbered from 0.
            Defaults to None: three as they are, the mean of others in grey.

    Raises:
        ValueError: If a number is not positive, or, before training, if the
            model is no CMAE.
    """

    priority = 'LOW'

    def __init__(self,
                 interval: int = 50,
                 by_epoch: bool = True,
                 num_images: int = 6,
                 channels: Optional[Sequence[int]] = None) -> None:
        if interval < 1 or num_images < 1:
            raise ValueError('interval and num_images must be 1 or more, but '
                             f'got {interval} and {num_images}')
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_images = num_images
        self.channels = channels

    def before_train(self, runner) -> None:
        """Forget the images of another training."""
        if not isinstance(unwrapped_model(runner), CMAE):
            raise ValueError('ReconstructionHook draws what a CMAE makes of '
                             'images; remove the hook')
        self._images: Optional[torch.Tensor] = None

    def after_train_epoch(self, runner) -> None:
        """Draw at the end of an epoch."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Draw after an iteration."""
        if not self.by_epoch and (
                self.every_n_train_iters(runner, self.interval)
                or self.is_last_train_iter(runner)):
            self._draw(runner, runner.iter + 1)

    def _draw(self, runner, step: int) -> None:
        model = unwrapped_model(runner)
        if not (is_main_process() or is_sharded(model)):
            return
        with whole_parameters(model), keep_generators():
            if self._images is None:
                self._images = self._load(runner, model)
            images = self._images.to(next(model.parameters()).device)
            torch.manual_seed(0)
            mask = model.backbone.generate_mask(len(images), 'cpu').to(
                images.device)
            columns = prediction_columns(model, images, mask, self.channels)
        sheet = draw_sheet(columns, fitting_scale(images.shape[-1], 128))
        if is_main_process():
            runner.visualizer.add_image('reconstruction', np.asarray(sheet),
                                        step=step)

    def _load(self, runner, model: CMAE) -> torch.Tensor:
        """Give the online views of some images, of constant draws."""
        dataset = runner.train_dataloader.dataset
        count = min(self.num_images, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        samples = []
        for index in chosen:
            seed_generators(mix(0, int(index)))
            samples.append(dataset[SeededIndex(index, mix(0, int(index)))])
        collate = runner.train_dataloader.collate_fn or pseudo_collate
        views = model.data_preprocessor(collate(samples), True)['inputs']
        online = views if isinstance(views, torch.Tensor) else views[0]
        return online.detach().cpu()
