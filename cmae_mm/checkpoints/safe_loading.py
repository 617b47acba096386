"""Makes a process read files without running what is in them."""
import io
import os
from typing import Any

import torch
import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler

from .errors import CheckpointError
from .safe_pickle import read_pickle
from .torch_files import MapLocation, load_file


def safe_load(f: Any,
              map_location: MapLocation = None,
              pickle_module: Any = None,
              *,
              weights_only: Any = None,
              mmap: Any = None,
              **pickle_load_args: Any) -> Any:
    """Stand in for ``torch.load``, whatever the caller asks for.

    Args:
        f (str | os.PathLike | BinaryIO): See :func:`load_file`.
        map_location: See :func:`load_file`.
        pickle_module: Not used: no pickle is run.
        weights_only: Not used: there is no other way.
        mmap: Not used: all is read and verified.
        **pickle_load_args: Not used.

    Returns:
        Any: What was saved.
    """
    return load_file(f, map_location)


def load_only_safely() -> None:
    """Let nothing that this process reads run code.

    A command calls it at its start. ``torch.load`` is replaced by
    :func:`safe_load`, so that every loader of every library takes it, and
    mmengine's reading of ``.pkl`` and ``.yaml`` files builds plain values
    alone. What is started from here loads with ``weights_only=True``. What
    processes send each other, and data sets keep in memory, is not changed.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    torch.load = torch.serialization.load = safe_load
    register_handler(['pickle', 'pkl'])(SafePickleHandler)
    register_handler(['yaml', 'yml'])(SafeYamlHandler)


class SafePickleHandler(PickleHandler):
    """mmengine's handler of pickles, for plain values and numpy arrays."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read a pickle.

        Raises:
            CheckpointError: If it holds anything else, or is damaged.
        """
        content = file.read()
        name = str(getattr(file, 'name', 'the pickled file'))
        return read_pickle(io.BytesIO(content), name, len(content))


class SafeYamlHandler(YamlHandler):
    """mmengine's handler of YAML, for plain values."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read YAML.

        Raises:
            CheckpointError: If it is none, or asks for Python objects.
        """
        kwargs['Loader'] = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
        try:
            return yaml.load(file, **kwargs)
        except yaml.YAMLError as error:
            reason = ' '.join(str(error).split())
            raise CheckpointError(
                f'{getattr(file, "name", "the file")} is no plain YAML: '
                f'{reason}') from error
