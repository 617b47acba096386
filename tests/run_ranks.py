"""Trains configs in turn on two processes; started by test_ranks.py.

Configs of other tests name its hook.

Each process writes what it drew and where it ended to OUT/<name>.<rank>.json.
"""
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.visualization import Visualizer
from mmpretrain.registry import HOOKS

import cmae_mm  # noqa: F401  registers the plugin
from cmae_mm.cli.main import end_process_group
from cmae_mm.engine import ResumableRunner, ShardedRunner
from cmae_mm.engine.device import adapt_to_device


def digest(values) -> str:
    """Hash tensors and arrays bit by bit."""
    made = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().numpy()
        made.update(np.ascontiguousarray(value).tobytes())
    return made.hexdigest()


def unwrapped(model):
    return model.module if is_model_wrapper(model) else model


@HOOKS.register_module()
class Watch(Hook):
    """Writes down what a process draws and what it trains.

    With ``out``, a template of a file's name, it saves it there.
    """

    priority = 'VERY_LOW'

    def __init__(self, out=None) -> None:
        self.out = out
        self.seen = dict(masks=[], images=[], mixups=[], states=[])

    def before_train(self, runner) -> None:
        model = unwrapped(runner.model)
        self.seen['start'] = digest(model.state_dict().values())
        generate_mask = getattr(model.backbone, 'generate_mask', None)
        if generate_mask is not None:

            loss, in_step = model.loss, []

            def watched(*args):
                mask = generate_mask(*args)
                if in_step:  # and not for a picture of a reconstruction
                    self.seen['masks'].append(digest([mask]))
                return mask

            def watched_loss(*args):
                in_step.append(True)
                try:
                    return loss(*args)
                finally:
                    in_step.pop()

            model.backbone.generate_mask = watched
            model.loss = watched_loss
        augments = getattr(model.data_preprocessor, 'batch_augments', None)
        for augment in getattr(augments, 'augments', []):
            self._watch_mixup(augment)

    def _watch_mixup(self, augment) -> None:
        mix = augment.mix

        def watched(inputs, scores):
            state = np.random.get_state()
            self.seen['mixups'].append(
                [type(augment).__name__, float(np.random.beta(1, 1))])
            np.random.set_state(state)
            return mix(inputs, scores)

        augment.mix = watched

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        # as the step will find them, after the hook that seeds it
        self.seen['states'].append(
            digest([torch.get_rng_state(), np.random.get_state()[1]]))
        samples = data_batch['data_samples']
        self.seen['images'] += [
            Path(sample.metainfo['img_path']).as_posix() for sample in samples]

    def after_train(self, runner) -> None:
        model = unwrapped(runner.model)
        self.seen['steps'] = runner.iter
        self.seen['parameters'] = digest(model.parameters())
        if getattr(model, 'target', None) is not None:
            self.seen['target'] = digest(model.target.parameters())
            self.seen['target_steps'] = int(model.target.steps)
        if self.out is not None:
            Path(self.out.format(runner.rank)).write_text(
                json.dumps(self.seen))


def main() -> None:
    """Train each config of a folder."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for path in sorted(folder.glob('*.py')):
        Visualizer._instance_dict.clear()
        cfg = Config.fromfile(path)
        cfg.launcher = 'pytorch'
        adapt_to_device(cfg)
        kind = ShardedRunner if 'strategy' in cfg else ResumableRunner
        runner = kind.from_cfg(cfg)
        watch = Watch()
        runner.register_hook(watch)
        runner.train()
        (folder / f'{path.stem}.{runner.rank}.json').write_text(
            json.dumps(watch.seen))


if __name__ == '__main__':
    main()
    end_process_group()
