"""Completing configs by what follows from other parts of the model."""
from typing import Any


def fill_in(cfg: dict, name: str, **sizes: Any) -> dict:
    """Complete a config by sizes that follow from other parts.

    Args:
        cfg (dict): What is set.
        name (str): Of the config, for errors.
        **sizes: What follows.

    Returns:
        dict: A new config with both.

    Raises:
        ValueError: If the config sets one of the sizes to something else.
    """
    cfg = dict(cfg)
    for key, value in sizes.items():
        if cfg.setdefault(key, value) != value:
            raise ValueError(
                f'{name}.{key}={cfg[key]!r} contradicts the rest of the model,'
                f' from which {key}={value!r} follows; leave it out')
    return cfg
