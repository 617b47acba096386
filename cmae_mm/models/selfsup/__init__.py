from .cmae import CMAE

__all__ = ['CMAE']
