from .cmae_neck import CMAENeck
from .simple_fpn import SimpleFPN

__all__ = ['CMAENeck', 'SimpleFPN']
