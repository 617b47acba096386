from .attention import attention_maps, colour_features, overlay
from .backends import MLflowBackend, WandbBackend
from .reconstruction import (
    prediction_columns,
    reconstruct,
    reconstruction_columns,
)
from .runs import read_run, save_loss_curve, series
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
    'prediction_columns', 'read_run', 'reconstruct',
    'reconstruction_columns', 'save_loss_curve', 'save_sheet', 'series',
    'to_rgb'
]
