"""Fixtures of several files here."""
import pytest
import torch
import torch._weights_only_unpickler as torch_unpickler
from mmengine.fileio.handlers import file_handlers


@pytest.fixture
def marker(tmp_path):
    """What a payload makes when it is run; taken back with all it changes."""
    allowed = torch_unpickler._marked_safe_globals_set.copy()
    yield tmp_path / 'marker'
    torch_unpickler._marked_safe_globals_set = allowed
    vars(torch.load).pop('marked', None)


@pytest.fixture
def safe_process(monkeypatch):
    """Take back what load_only_safely changes."""
    monkeypatch.setattr(torch, 'load', torch.load)
    monkeypatch.setattr(torch.serialization, 'load', torch.load)
    for name in ('WEIGHTS_ONLY', 'NO_WEIGHTS_ONLY'):
        monkeypatch.setenv(f'TORCH_FORCE_{name}_LOAD', '0')
        monkeypatch.delenv(f'TORCH_FORCE_{name}_LOAD')
    for name, handler in list(file_handlers.items()):
        monkeypatch.setitem(file_handlers, name, handler)
