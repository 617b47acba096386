"""Every default config makes a training step in half precision, as on a GPU.

mmengine autocasts on accelerators alone. Here its wrapper autocasts on the
CPU, around the same calls: the data preprocessor, the model and the losses.
"""
import pytest
import torch
from helpers import HALF, require_dense
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from shrunken import CONFIGS, shrunken

from cmae_mm.engine import ResumableRunner


@pytest.mark.parametrize('name', CONFIGS)
def test_one_step_in_half_precision(name, tmp_path, monkeypatch):
    for folder, library in (('detection', 'mmdet'), ('segmentation', 'mmseg')):
        if name.startswith(f'{folder}/'):
            require_dense(library)
    Visualizer._instance_dict.clear()
    cfg = shrunken(name, tmp_path / 'data', tmp_path / 'work')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = ResumableRunner.from_cfg(cfg)
        runner._init_model_weights()
        model = runner.model.train()
        # of RuntimeInfoHook; mmpretrain's momentum encoders ask for it
        runner.message_hub.update_info('max_iters', 2)
        batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
        for dtype in HALF:
            wrapper = runner.build_optim_wrapper(
                dict(cfg.optim_wrapper, dtype=str(dtype)[len('torch.'):]))
            wrapper.initialize_count_status(model, 0, 1)
            wrapper.optimizer.register_step_pre_hook(_check_gradients)
            before = [p.detach().clone() for p in model.parameters()]
            logged = model.train_step(batch, wrapper)
            assert all(v.isfinite() for k, v in logged.items()
                       if 'loss' in k), (dtype, logged)
            assert any(
                not torch.equal(old, new)
                for old, new in zip(before, model.parameters())), dtype


def _check_gradients(optimizer, args, kwargs):
    gradients = [p.grad for group in optimizer.param_groups
                 for p in group['params'] if p.requires_grad]
    missing = sum(g is None for g in gradients)
    assert missing == 0, f'{missing} of {len(gradients)} have no gradient'
    assert all(g.dtype == torch.float32 for g in gradients)
