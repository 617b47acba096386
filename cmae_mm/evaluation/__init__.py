"""Evaluation of frozen features.

Import from the modules; the package itself imports nothing.
"""
__all__ = [
    'data', 'dense', 'feature_files', 'features', 'health', 'probes'
]

# Defaults of the commands, which are parsed without torch: numbers of
# neighbours, temperature of their votes, and rates of linear classifiers for a
# batch of 256.
KS = (5, 10, 20, 50, 100)
TEMPERATURE = 0.07
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1., 3.)
