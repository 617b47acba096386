"""What resuming needs to read besides tensors.

A runner's checkpoint holds mmengine's log history, a few arrays of numbers.
torch refuses classes it does not know when it loads safely
(``weights_only=True``, its default since 2.6). OneDL's mmengine names them to
torch; the original mmengine 0.10.7 does not, and could not resume any run.
"""
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint

# numpy moved these private functions between versions.
_REBUILD_ARRAY = np.empty(0).__reduce__()[0]
_REBUILD_SCALAR = np.float64(0).__reduce__()[0]


def allow_log_history() -> None:
    """Let safe loading rebuild log histories, where mmengine does not."""
    if hasattr(checkpoint, 'get_torch_safe_globals') or not hasattr(
            torch.serialization, 'add_safe_globals'):  # torch < 2.4
        return
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, _REBUILD_ARRAY, _REBUILD_SCALAR,
        *{type(np.dtype(kind)) for kind in 'fdlqi?'},
        # A history names its statistics with it. What getattr finds cannot
        # be called: torch calls what is on its list alone.
        getattr
    ])
