from typing import TYPE_CHECKING

from ..entry import import_on_use

if TYPE_CHECKING:
    from .attention import attention_maps, colour_features, overlay
    from .image_grid import (
        draw_grid,
        fitting_scale,
        label_files,
        save_grid,
        to_rgb,
    )
    from .reconstruction import (
        prediction_columns,
        reconstruct,
        reconstruction_columns,
    )
    from .runs import read_run, save_loss_curve, series
    from .vis_backends import MLflowBackend, WandbBackend

__all__ = [
    'MLflowBackend', 'WandbBackend', 'attention_maps', 'colour_features',
    'draw_grid', 'fitting_scale', 'label_files', 'overlay',
    'prediction_columns', 'read_run', 'reconstruct', 'reconstruction_columns',
    'save_grid', 'save_loss_curve', 'series', 'to_rgb'
]

__getattr__ = import_on_use(__name__, {
    'attention': ('attention_maps', 'colour_features', 'overlay'),
    'image_grid': ('draw_grid', 'fitting_scale', 'label_files', 'save_grid',
                   'to_rgb'),
    'reconstruction': ('prediction_columns', 'reconstruct',
                       'reconstruction_columns'),
    'runs': ('read_run', 'save_loss_curve', 'series'),
    'vis_backends': ('MLflowBackend', 'WandbBackend'),
})
