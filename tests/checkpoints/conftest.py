"""Fixtures of several tests of checkpoints."""
import pytest
import torch
import torch._weights_only_unpickler as torch_unpickler
from payloads import HAS_SAFE_GLOBALS


@pytest.fixture
def marker(tmp_path):
    """Effects of an executed payload, reverted afterwards."""
    if HAS_SAFE_GLOBALS:
        allowed = torch_unpickler._marked_safe_globals_set.copy()
    yield tmp_path / 'marker'
    if HAS_SAFE_GLOBALS:
        torch_unpickler._marked_safe_globals_set = allowed
    vars(torch.load).pop('marked', None)
