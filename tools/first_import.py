"""Imported first by the commands beside it: says what is not installed.

A missing library ends in one sentence, not in a traceback of imports.
"""
import os
import sys

try:
    import cmae_mm  # noqa: F401  registers the plugin, also for other configs
except ImportError as error:
    if os.environ.get('CMAE_DEBUG'):
        raise
    told = str(error)
    if isinstance(error, ModuleNotFoundError) and 'cmae_mm needs' not in told:
        told = (f'{error.name} is not installed; install what cmae_mm needs '
                "with `pip install -e '.[onedl]'` in its clone, or `pip "
                "install 'cmae_mm[onedl]'`")
    sys.exit(f'{os.path.basename(sys.argv[0])}: {told}')
