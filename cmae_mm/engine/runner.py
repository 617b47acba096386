"""mmengine's runner, made to lose nothing and to load nothing by half."""
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's ``Runner`` that the commands of this project start.

    Other tools take it where a config says ``runner_type='ResumableRunner'``.
    """
