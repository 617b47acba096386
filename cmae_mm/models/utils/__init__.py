from .archs import check_arch, with_mini
from .channel_data_preprocessors import (
    ChannelClsDataPreprocessor,
    ChannelDataPreprocessor,
)
from .checks import (
    check_choice,
    check_fusion,
    check_global_blocks,
    check_gradient,
    check_grid,
    check_images,
    check_in_channels,
    check_maps,
    check_momentum,
    check_stages,
    check_width,
    count_visible,
    note_visible,
)
from .completion import complete_parts, fill_in, mlp_cfg, preprocessor_cfg
from .drop_rates import use_plain_drop_rates
from .initialisation import MAE_INIT, is_pretrained, start_from_encoder
from .old_torch import gelu, keep_step_hooks
from .patches import cut_patches
from .sharded import is_sharded, local_part
from .two_view_data_preprocessor import TwoViewDataPreprocessor

__all__ = [
    'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor', 'MAE_INIT',
    'TwoViewDataPreprocessor', 'check_arch', 'check_choice', 'check_fusion',
    'check_global_blocks', 'check_gradient', 'check_grid', 'check_images',
    'check_in_channels', 'check_maps', 'check_momentum', 'check_stages',
    'check_width', 'complete_parts', 'count_visible', 'cut_patches', 'fill_in',
    'gelu', 'is_pretrained', 'is_sharded', 'keep_step_hooks', 'local_part',
    'mlp_cfg', 'note_visible', 'preprocessor_cfg', 'start_from_encoder',
    'use_plain_drop_rates', 'with_mini'
]
