"""Named sizes of transformers."""
from typing import Any, Dict, Union

Arch = Dict[str, Any]

# Small enough for a few CPU cores, as the quickstart trains it.
_MINI = dict(
    embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)
_AMBIGUOUS = ('s', 'small')


def with_mini(zoo: Dict[str, Arch], **more: Any) -> Dict[str, Arch]:
    """Add ``mini`` to the named sizes of a transformer of mmpretrain.

    Its 'small', 768 wide and 8 layers deep, is left out, since elsewhere the
    word means 384 and 12, which is 'deit-small'.

    Args:
        zoo (Dict[str, dict]): mmpretrain's.
        **more: Further settings of ``mini``.

    Returns:
        Dict[str, dict]: A new dict, sizes by name.
    """
    zoo = {k: v for k, v in zoo.items() if k not in _AMBIGUOUS}
    return zoo | dict(mini=dict(_MINI, **more))


def check_arch(arch: Union[str, Arch], zoo: Dict[str, Arch]) -> None:
    """Check the architecture that was asked for.

    Args:
        arch (str | dict): A name, or sizes.
        zoo (Dict[str, dict]): The sizes by name.

    Raises:
        ValueError: If the name is not known, or a size is missing.
    """
    if isinstance(arch, str):
        if arch.lower() in _AMBIGUOUS and 'deit-small' in zoo:
            raise ValueError(
                f"backbone.arch={arch!r} has two meanings: say 'deit-small' "
                'for the ViT-S of the literature, 384 wide with 12 layers; '
                "for mmpretrain's own, 768 wide with 8 layers, give the sizes "
                'as a dict')
        if arch.lower() not in zoo:
            raise ValueError(
                f'backbone.arch must be one of {", ".join(sorted(zoo))}, or a '
                f'dict of sizes, but got {arch!r}')
        return
    needed = list(next(iter(zoo.values())))
    missing = [k for k in needed if k not in arch]
    if missing:
        raise ValueError(
            f'backbone.arch lacks {", ".join(missing)}; give all of '
            f'{", ".join(needed)}, or a name, for instance \'base\'')
