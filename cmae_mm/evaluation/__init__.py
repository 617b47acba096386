"""Evaluation of frozen features.

Import from the modules; the package itself imports nothing.
"""
__all__ = [
    'centre_crop', 'data', 'dense', 'feature_files', 'features', 'health',
    'probes'
]
