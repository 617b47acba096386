"""Public functions of the package, one for each command.

``import cmae_mm`` imports them on first use, so ``cmae --help`` does not load
torch. ``arguments.py`` declares and checks their arguments.
"""
