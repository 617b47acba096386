"""A pre-trained encoder that several files start from."""
import pytest
import torch
from helpers import build, model_cfg

from cmae_mm.checkpoints import export_cmae, export_encoder


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A model and its encoder in every kind of file."""
    torch.manual_seed(3)
    model = build(model_cfg())
    for p in model.target.parameters():
        p.data += 0.01 * torch.randn_like(p)
    folder = tmp_path_factory.mktemp('pretrained')
    torch.save(
        dict(state_dict=model.state_dict(), meta={}), folder / 'full.pth')
    export_encoder(model, str(folder / 'exported.safetensors'))
    export_encoder(model, str(folder / 'timm.pth'), to='timm')
    export_cmae(model, str(folder / 'released.pth'))
    torch.save(model.backbone.state_dict(), folder / 'bare.pth')
    return model, folder
