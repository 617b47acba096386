"""An extension of griffe, the reader of mkdocstrings (extra='docs').

It gives the site the arguments of commands that their types document.
"""
import importlib
import inspect
from types import SimpleNamespace
from typing import Any, get_type_hints

import griffe


class CommandDocstrings(griffe.Extension):
    """Take the docstring that ``apis.arguments.command`` completes."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replace the docstring of a command, and its ``**options``."""
        if not func.docstring or not any(
                d.callable_path.endswith('.command')
                for d in func.decorators):
            return
        module = importlib.import_module(func.module.path)
        function = getattr(module, func.name)
        func.docstring.value = inspect.getdoc(function) or ''
        if 'options' not in func.parameters:
            return
        del func.parameters['options']
        parameters = inspect.signature(function).parameters
        # Without the metadata of Annotated.
        hints = get_type_hints(SimpleNamespace(__annotations__={
            name: one.annotation for name, one in parameters.items()}))
        for name, one in parameters.items():
            if name not in func.parameters:
                func.parameters.add(griffe.Parameter(
                    name, annotation=inspect.formatannotation(hints[name]),
                    kind=griffe.ParameterKind.keyword_only,
                    default=repr(one.default)))
