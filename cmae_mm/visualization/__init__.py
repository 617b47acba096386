from typing import TYPE_CHECKING

from ..dependencies import import_on_use

if TYPE_CHECKING:
    from .attention import attention_maps, colour_features, overlay
    from .image_grid import (draw_grid, fitting_scale, label_files, save_grid,
                             to_rgb)
    from .reconstruction import prediction_columns, reconstruct
    from .runs import read_run, series

__all__ = [
    'attention_maps', 'colour_features',
    'draw_grid', 'fitting_scale', 'label_files', 'overlay',
    'prediction_columns', 'read_run', 'reconstruct', 'save_grid', 'series',
    'to_rgb'
]

__getattr__ = import_on_use(__name__, {
    'attention': ('attention_maps', 'colour_features', 'overlay'),
    'image_grid': ('draw_grid', 'fitting_scale', 'label_files', 'save_grid',
                   'to_rgb'),
    'reconstruction': ('prediction_columns', 'reconstruct'),
    'runs': ('read_run', 'series'),
})
