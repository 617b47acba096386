"""Makes Linux look like macOS or Windows, as far as Python tells.

Written as ``sitecustomize.py`` into a folder on PYTHONPATH, so that spawned
workers are on the same system.
"""
import builtins
import io
import multiprocessing.context
import os
import signal

MISSING = {
    os: ('sched_getaffinity', ),
    signal: ('SIGUSR1', 'SIGUSR2', 'sigwaitinfo', 'sigtimedwait',
             'pthread_sigmask'),
}
for module, names in MISSING.items():
    for name in names:
        delattr(module, name)

# Processes can only be spawned.
contexts = multiprocessing.context._concrete_contexts
del contexts['fork'], contexts['forkserver']
multiprocessing.context._default_context._default_context = contexts['spawn']

_import = builtins.__import__


def import_without_resource(name, globals=None, *args, **kwargs):
    """Import a module, but not `resource`, which mmengine needs on Linux."""
    if name == 'resource' and (globals or {}).get(
            '__name__', '').startswith('cmae_mm'):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    return _import(name, globals, *args, **kwargs)


builtins.__import__ = import_without_resource
_open = io.open


def open_without_proc(file, *args, **kwargs):
    """Open a file, but none of Linux's own."""
    if str(file).startswith(('/proc/', '/sys/')):
        raise FileNotFoundError(2, 'No such file or directory', str(file))
    return _open(file, *args, **kwargs)


io.open = builtins.open = open_without_proc
