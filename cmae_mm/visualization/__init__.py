from .attention import attention_maps, colour_features, overlay
from .backends import MLflowBackend, WandbBackend
from .loss_curve import read_scalars, save_loss_curve
from .reconstruction import (
    prediction_columns,
    reconstruct,
    reconstruction_columns,
)
from .sheet import (
    draw_sheet,
    fitting_scale,
    label_files,
    save_sheet,
    to_rgb,
)

__all__ = [
    'MLflowBackend', 'WandbBackend', 'attention_maps', 'colour_features',
    'draw_sheet', 'fitting_scale', 'label_files', 'overlay',
    'prediction_columns', 'read_scalars', 'reconstruct',
    'reconstruction_columns', 'save_loss_curve', 'save_sheet', 'to_rgb'
]
