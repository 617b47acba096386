"""Random transforms that draw the same for a sample wherever it is made."""
import logging

from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS

from ..samplers import seed_generators


@TRANSFORMS.register_module()
class SeedDraws(BaseTransform):
    """Let all that a pipeline draws follow from the sample's own seed.

    The first transform of a training pipeline of mmpretrain, mmdet or mmseg.
    ``SeededSampler`` and ``SeededInfiniteSampler`` give the seeds; crops,
    flips and colours then are the same for any number of workers, and after
    a run was stopped and resumed. What follows must draw from the global
    generators of ``random``, numpy or torch, as the transforms of these
    libraries do.

    A sample without a seed, as one that takes an unreadable one's place,
    draws on from the sample before; where no sample has one, the log says so.

    **Required Keys:**

    - sample_idx (optional): Index of the sample, which mmengine's data sets
      set.
    """

    _found_one = False

    def transform(self, results: dict) -> dict:
        """Seed the process's generators.

        Args:
            results (dict): The sample, which is left as it is.

        Returns:
            dict: The same sample.
        """
        seed = getattr(results.get('sample_idx'), 'seed', None)
        if seed is not None:
            seed_generators(seed)
        elif not self._found_one:
            print_log(
                'SeedDraws got a sample without a seed: its random transforms '
                'depend on the number of workers and change when the run is '
                "resumed; set train_dataloader.sampler.type='mmpretrain."
                "SeededSampler' or 'mmpretrain.SeededInfiniteSampler'.",
                logger='current',
                level=logging.WARNING)
        self._found_one = True  # or has said so
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
