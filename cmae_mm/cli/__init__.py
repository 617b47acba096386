"""The command ``cmae``.

Modules import torch and the libraries inside functions, so that help texts
and usage errors are fast.
"""
