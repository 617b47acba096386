from .fill_in import fill_in
from .mlp import mlp_cfg
from .momentum_target import MomentumTarget
from .two_view_data_preprocessor import TwoViewDataPreprocessor

__all__ = [
    'MomentumTarget', 'TwoViewDataPreprocessor', 'fill_in', 'mlp_cfg'
]
