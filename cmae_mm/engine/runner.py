"""mmengine's runner, made to lose nothing and to load nothing by half."""
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS

from .hooks import SkippedStepHook, StepSeedHook
from .loops import resumable


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's ``Runner`` that the commands of this project start.

    Other tools take it where a config says ``runner_type='ResumableRunner'``.
    """

    def build_train_loop(self, loop):
        """Build a loop that can go on in the middle of an epoch.

        See ``Runner.build_train_loop``; mmengine's two loops are replaced by
        ``ResumableEpochLoop`` and ``ResumableIterLoop``.
        """
        return super().build_train_loop(resumable(loop))

    def build_optim_wrapper(self, optim_wrapper):
        """Build an optimizer wrapper that skips steps that are not finite.

        See ``Runner.build_optim_wrapper``; mmengine's plain ``OptimWrapper``
        is replaced by ``AutoAmpOptimWrapper`` in float32.
        """
        if isinstance(optim_wrapper, dict) and 'optimizer' in optim_wrapper:
            kind = optim_wrapper.get('type', 'OptimWrapper')
            if kind in ('OptimWrapper', 'mmengine.OptimWrapper', OptimWrapper):
                optim_wrapper = dict(
                    optim_wrapper,
                    type='mmpretrain.AutoAmpOptimWrapper',
                    dtype='float32')
        return super().build_optim_wrapper(optim_wrapper)

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        """Register hooks, and those that no run should be without.

        See ``Runner.register_hooks``.
        """
        super().register_hooks(default_hooks, custom_hooks)
        for needed in (StepSeedHook, SkippedStepHook):
            if not any(isinstance(hook, needed) for hook in self.hooks):
                self.register_hook(needed())
