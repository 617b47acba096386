"""Makes Linux look like macOS, as far as Python tells.

Written as ``sitecustomize.py`` into a folder on PYTHONPATH.
"""
import builtins
import io
import os
import signal

MISSING = {
    os: ('sched_getaffinity', ),
    signal: ('sigwaitinfo', 'sigtimedwait'),
}
for module, names in MISSING.items():
    for name in names:
        delattr(module, name)

_open = io.open


def open_without_proc(file, *args, **kwargs):
    """Open a file unless it belongs to Linux."""
    if str(file).startswith(('/proc/', '/sys/')):
        raise FileNotFoundError(2, 'No such file or directory', str(file))
    return _open(file, *args, **kwargs)


io.open = builtins.open = open_without_proc
