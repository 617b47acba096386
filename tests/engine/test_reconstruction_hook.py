"""Pictures during training, which do not change it."""
import numpy as np
import pytest
import torch
from helpers import runner_cfg
from PIL import Image

from cmae_mm.engine import ReconstructionHook, ResumableRunner


def trained(image_root, work_dir, hooks, pipeline=None):
    cfg = runner_cfg(image_root, work_dir, **{
        'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 100})
    cfg.custom_hooks = [h for h in cfg.custom_hooks
                        if h.type != 'ReconstructionHook'] + hooks
    if pipeline:  # views made of whole batches
        cfg.train_dataloader.dataset.pipeline = pipeline
        cfg.data_preprocessor = dict(
            type='TwoViewDataPreprocessor', mean=[120.] * 3, std=[60.] * 3,
            size=32, max_shift=8, blur_sigma=(0.1, 0.6))
    # Draws continue from step to step.
    runner = ResumableRunner.from_cfg(cfg)
    runner.hooks[:] = [h for h in runner.hooks
                       if type(h).__name__ != 'StepSeedHook']
    runner.train()
    return runner.model.state_dict()


@pytest.mark.parametrize('pipeline', [None, [
    dict(type='LoadCanvas', size=40),
    dict(type='PackInputs', meta_keys=('img_path', 'view_seed'))]],
    ids=['workers', 'batches'])
def test_pictures_do_not_change_training(image_root, tmp_path, pipeline):
    plain = trained(image_root, tmp_path / 'a', [], pipeline)
    drawn = trained(image_root, tmp_path / 'b', [
        dict(type='ReconstructionHook', interval=3, by_epoch=False,
             num_images=2)], pipeline)
    for name, value in plain.items():
        assert torch.equal(value, drawn[name]), name
    files = sorted((tmp_path / 'b').glob('*/vis_data/vis_image/*.png'))
    assert [f.name for f in files] == [
        'reconstruction_3.png', 'reconstruction_4.png']
    before, after = (np.asarray(Image.open(f)) for f in files)
    # The same images and masks, another prediction.
    width = before.shape[1] // 4
    assert before.std() > 10
    assert (before[:, :width] == after[:, :width]).all()
    assert (before[:, width:2 * width] == after[:, width:2 * width]).all()
    assert (before != after).any()


def test_invalid_numbers_raise():
    for wrong in (dict(interval=0), dict(num_images=0)):
        with pytest.raises(ValueError, match='must be 1 or more'):
            ReconstructionHook(**wrong)
