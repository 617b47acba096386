"""The process that ``ChildTrials`` starts: makes steps, and tells their peak.

Reads a JSON line with the config, then one for each batch size; answers each
by one, to the pipe that its argument is the number of.
"""
import ctypes
import gc
import json
import os
import sys
from contextlib import suppress


def main() -> None:
    """Answer until there is nothing to read."""
    answers = os.fdopen(int(sys.argv[1]), 'w')

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from .batch_trials import build_trial_step, time_steps
    from .memory import read_status, reset_peak
    task = json.loads(sys.stdin.readline())
    cfg = Config.fromstring(task['config'], '.py')
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    device = torch.device('cpu')
    answer(base=read_status('VmRSS'))
    step = None
    try:
        for line in sys.stdin:
            reset_peak()
            if step is None:
                step = build_trial_step(cfg, device, task['checkpointing'])
            rate = time_steps(step, cfg, json.loads(line), device)
            answer(peak=read_status('VmHWM'), images_per_s=rate)
            step.batch = None
            step.wrapper.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            _give_back()
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        answer(error=f'{error}'.strip() or type(error).__name__)


def _give_back() -> None:
    """Give freed memory back to the system, where glibc keeps it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)


if __name__ == '__main__':
    main()
