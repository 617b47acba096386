from .channel_data_preprocessor import (
    ChannelClsDataPreprocessor,
    ChannelDataPreprocessor,
)
from .two_view_data_preprocessor import TwoViewDataPreprocessor

__all__ = [
    'ChannelClsDataPreprocessor', 'ChannelDataPreprocessor',
    'TwoViewDataPreprocessor'
]
