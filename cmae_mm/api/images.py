"""Image files, as a person names them, and the crop that is looked at."""
from pathlib import Path
from typing import List, Sequence

import numpy as np
import torch
from torch import Tensor

from ..datasets.source import open_source
from .centre_crop import CentreCrop
from .checks import ArgumentError, PathLike


def pick_images(named: Sequence[PathLike], most: int) -> List[Path]:
    """List the image files that are meant.

    Args:
        named (Sequence[str | PathLike]): Files, or folders of images.
        most (int): Largest number of images of a folder, evenly spaced.

    Returns:
        List[Path]: The files.

    Raises:
        ArgumentError: If there is no such file, or none at all.
    """
    files: List[Path] = []
    for name in named:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = open_source(path)
            files += [Path(inside.path(i)) for i in evenly(len(inside), most)]
        elif path.is_file():
            files.append(path)
        else:
            raise ArgumentError(f'there is no image {name}')
    if not files:
        raise ArgumentError('name one image or more, or a folder of them')
    return files


def evenly(count: int, most: int) -> List[int]:
    """Give at most so many of ``range(count)``, evenly spaced."""
    return sorted({round(i) for i in np.linspace(0, count - 1,
                                                 min(count, most))})


def load_crops(files: Sequence[Path], crop: CentreCrop) -> Tensor:
    """Read and crop images.

    Args:
        files (Sequence[Path]): N files.
        crop (CentreCrop): What decodes and crops them.

    Returns:
        Tensor: (N, C, S, S), of the images' type, colours as RGB.

    Raises:
        ArgumentError: If one cannot be decoded.
    """
    crops = []
    for file in files:
        try:
            crops.append(crop(crop.decode(file.read_bytes(), str(file))))
        except (ValueError, OSError) as error:
            raise ArgumentError(str(error)) from error
    return torch.stack(crops)
