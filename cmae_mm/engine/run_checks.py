"""What must hold before the first step, whatever a run trains."""
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..models import CMAE
from .device import unwrapped_model
from .hooks.target_update_hook import TargetUpdateHook


def check_one_batch(loader: DataLoader) -> None:
    """Check that the training data fill at least one batch.

    Args:
        loader (DataLoader): The training's data loader.

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
        runner (Runner): A runner before its training.

    Raises:
        ValueError: If nothing does, and ``model.target.fixed`` is not set.
    """
    model = unwrapped_model(runner)
    if (not isinstance(model, CMAE) or model.target is None
            or model.target.fixed):
        return
    # The hook may begin only after this check.
    moved = model.target.is_following or any(
        isinstance(hook, TargetUpdateHook) for hook in runner.hooks)
    if not moved:
        raise ValueError(
            'nothing would move the target: add '
            "dict(type='TargetUpdateHook') to custom_hooks, or set "
            'model.target.fixed=True if it shall stay as it starts')
