"""The version of cmae_mm, also read by ``setup.cfg``."""
__version__ = '0.1.0'
