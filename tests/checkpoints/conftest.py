"""Fixtures of several files here."""
import pytest
import torch
import torch._weights_only_unpickler as torch_unpickler


@pytest.fixture
def marker(tmp_path):
    """What a payload makes when it is run; taken back with all it changes."""
    allowed = torch_unpickler._marked_safe_globals_set.copy()
    yield tmp_path / 'marker'
    torch_unpickler._marked_safe_globals_set = allowed
    vars(torch.load).pop('marked', None)
