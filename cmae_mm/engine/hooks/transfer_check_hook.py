"""Looks, before the first step, for data that a classifier cannot learn."""
from mmpretrain.registry import HOOKS

from ...datasets.datasets import count_classes
from ...evaluation.data import check_same_classes
from ..device import unwrapped_model
from ..run_checks import check_one_batch
from .broken_images_hook import BrokenImagesHook


@HOOKS.register_module()
class TransferCheckHook(BrokenImagesHook):
    """Check labels and classes before a classifier is trained.

    After each epoch it reports broken images, as ``PretrainCheckHook`` does.

    Raises:
        ValueError: If a data set is empty or has no labels, validation
            classes are not the training classes, or the head has another
            number of them, or validation asks for the accuracy of the top 5
            of fewer classes.
    """

    def before_train(self, runner) -> None:
        """Check training and validation data against the head."""
        train = runner.train_dataloader.dataset
        splits = dict(train=train)
        if runner.val_loop is not None:
            splits['val'] = runner.val_dataloader.dataset
            check_same_classes(train, splits['val'])
            self._check_topk(runner)
        model = unwrapped_model(runner)
        for name, dataset in splits.items():
            self._check_labels(name, dataset, model.head.num_classes)
        prepared = getattr(model.data_preprocessor, 'num_classes', None)
        if prepared not in (None, model.head.num_classes):
            raise ValueError(
                f'data_preprocessor.num_classes={prepared}, but the head has '
                f'num_classes={model.head.num_classes}; set both to the '
                "data's number of classes")
        check_one_batch(runner.train_dataloader)

    @staticmethod
    def _check_topk(runner) -> None:
        """Mmpretrain would find it after the first epoch's validation."""
        classes = unwrapped_model(runner).head.num_classes
        for metric in runner.val_loop.evaluator.metrics:
            topk = getattr(metric, 'topk', None) or (1, )
            if max(topk) > classes:
                raise ValueError(
                    f'val_evaluator: top-{max(topk)} accuracy is undefined '
                    f'for {classes} classes; set val_evaluator.topk=1 and '
                    'test_evaluator.topk=1')

    @staticmethod
    def _check_labels(name: str, dataset, num_classes: int) -> None:
        try:
            count = count_classes(dataset)
        except ValueError as error:
            raise ValueError(f'the {name} data: {error}') from error
        # An annotation file may leave the last classes out.
        listed = dataset.metainfo.get('classes')
        if count > num_classes or (listed and count != num_classes):
            raise ValueError(
                f'the {name} data has {count} classes, but the head has '
                f'num_classes={num_classes}; set model.head.num_classes and '
                f'data_preprocessor.num_classes to {count}')
