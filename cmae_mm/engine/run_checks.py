"""What must hold before the first step, whatever a run trains."""
from typing import Dict, List

from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from ..models import CMAE
from .device import unwrapped_model
from .hooks.target_update_hook import TargetUpdateHook
from .loops import index_sampler


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


def check_ranks_agree(loader: DataLoader) -> List[int]:
    """Check that no rank would wait for batches that another has not.

    Args:
        loader (DataLoader): The training's data loader.

    Returns:
        List[int]: Number of samples that each rank draws in an epoch; empty
        for a stream of data, whose number is not known.

    Raises:
        ValueError: If ranks find different numbers of images, or have
            different numbers of batches in an epoch.
    """
    mine: Dict[str, int] = {}
    if not isinstance(loader.dataset, IterableDataset):
        mine = dict(images=len(loader.dataset), batches=len(loader),
                    samples=len(index_sampler(loader)))
    ranks = all_gather_object(mine)
    first = ranks[0]
    for rank, other in enumerate(ranks):
        if other.get('images') != first.get('images'):
            raise ValueError(
                f'rank {rank} finds {other.get("images")} images and rank 0 '
                f'{first.get("images")}: all ranks must see the same data, '
                'since they share them out by number')
        if other.get('batches') != first.get('batches'):
            raise ValueError(
                f'an epoch has {other["batches"]} batches on rank {rank} and '
                f'{first["batches"]} on rank 0, which would wait for each '
                'other for ever; leave train_dataloader.sampler.round_up out, '
                'so that each rank draws as many images')
    return [rank['samples'] for rank in ranks if rank]


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
