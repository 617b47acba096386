from .cmae_neck import CMAENeck

__all__ = ['CMAENeck']
