"""Evaluation of frozen features, without labels, or with few.

Import from the modules: the package itself imports nothing.
"""
__all__ = [
    'data', 'dense', 'evaluator', 'features', 'health', 'health_rules', 'knn',
    'linear', 'low_shot', 'report', 'splits'
]
