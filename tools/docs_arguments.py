"""An extension of griffe, the reader of mkdocstrings (extra='docs').

It gives the site the arguments of commands that their types document.
"""
import importlib
import inspect
from typing import Any

import griffe


class CommandDocstrings(griffe.Extension):
    """Take the docstring that ``apis.arguments.command`` completes."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replace the docstring of a command."""
        if func.docstring and any(d.callable_path.endswith('.command')
                                  for d in func.decorators):
            module = importlib.import_module(func.module.path)
            text = inspect.getdoc(getattr(module, func.name))
            func.docstring.value = text or ''
