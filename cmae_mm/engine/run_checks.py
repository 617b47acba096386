"""What must hold before the first step, whatever a run trains."""
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .device import unwrapped_model


def check_one_batch(loader: DataLoader) -> None:
    """Check that the training data fill at least one batch.

    Args:
        loader (DataLoader): Of the training.

    Raises:
        ValueError: If they do not.
    """
    # An infinite sampler fills a batch however few images there are.
    endless = isinstance(getattr(loader, 'sampler', None), InfiniteSampler)
    if endless or len(loader) > 0:
        return
    raise ValueError(
        f'the training data has {len(loader.dataset)} images, fewer than one '
        f'batch of {loader.batch_size} on {get_world_size()} process(es), so '
        'that no step would be made; lower train_dataloader.batch_size or add '
        'images')


def check_target_moves(runner: Runner) -> None:
    """Check that something moves the target of a CMAE.

    Args:
        runner (Runner): Before training.

    Raises:
        ValueError: If nothing does, and ``model.target.fixed`` is not set; or
            if it is set and something does.
    """
    # Hooks import what imports this.
    from .hooks.target_update_hook import TargetUpdateHook
    model = unwrapped_model(runner)
    target = getattr(model, 'target', None)
    if target is None or not hasattr(model, 'update_target'):
        return
    moved = model.target_is_driven or any(
        isinstance(hook, TargetUpdateHook) for hook in runner.hooks)
    if not moved and not target.fixed:
        raise ValueError(
            'nothing would move the target: add '
            "dict(type='TargetUpdateHook') to custom_hooks, or set "
            'model.target.fixed=True if it shall stay as it starts')
    if moved and target.fixed:
        raise ValueError(
            'model.target.fixed=True and TargetUpdateHook contradict each '
            'other; leave one of them out')
