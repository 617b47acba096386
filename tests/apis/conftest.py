"""A small model that the API itself has pre-trained."""
import pytest
from helpers import write_images

import cmae_mm

# The model `mini`, smaller still.
SMALLER = {
    'model.backbone.arch': dict(
        _delete_=True, embed_dims=48, num_layers=2, num_heads=3,
        feedforward_channels=96),
    'default_hooks.logger.interval': 1,
}


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    """Eight photographs in two folders."""
    root = tmp_path_factory.mktemp('api') / 'photos'
    write_images(root / 'a', 5, size=80)
    write_images(root / 'b', 3, size=80, seed=1)
    return root


@pytest.fixture(scope='session')
def smaller():
    return dict(SMALLER)


@pytest.fixture(scope='session')
def pretrained(photos, tmp_path_factory):
    """Files of two epochs of two steps."""
    return cmae_mm.pretrain(
        photos, 'mini', epochs=2, batch_size=4, num_workers=0,
        out=tmp_path_factory.mktemp('api') / 'trained', cfg_options=SMALLER)
