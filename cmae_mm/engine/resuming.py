"""What resuming needs to read besides tensors."""
import torch
from mmengine.runner import checkpoint

from ..checkpoints.files import LOG_HISTORY


def allow_log_history() -> None:
    """Let mmengine's safe loading rebuild log histories, where it does not.

    torch refuses classes it does not know when it loads safely
    (``weights_only=True``, its default since 2.6). OneDL's mmengine names
    them to torch; the original mmengine 0.10.7 does not, and could not resume
    any run.
    """
    if not hasattr(checkpoint, 'get_torch_safe_globals') and hasattr(
            torch.serialization, 'add_safe_globals'):  # torch >= 2.4
        torch.serialization.add_safe_globals(list(LOG_HISTORY))
