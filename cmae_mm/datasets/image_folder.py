"""What folders of images have in common, whatever data set reads them."""
import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

IMG_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif',
                  '.tiff', '.webp', '.npy', '.dcm', '.dicom')


def why_no_folder(path: str) -> str:
    """Say in a few words why a path is not a folder."""
    if os.path.islink(path) and not os.path.exists(path):
        return 'is a symbolic link that leads nowhere or in a circle'
    return 'is a file' if os.path.exists(path) else 'does not exist'


@contextmanager
def circular_links_explained(folder: str) -> Iterator[None]:
    """Explain the error that a circle of symbolic links leads to.

    Args:
        folder (str): The folder that is searched.

    Raises:
        ValueError: If a link below it leads in a circle; names the link.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(
            f'a symbolic link below {folder!r} leads in a circle '
            f'({_first_link(error.filename)}); remove it') from None


def _first_link(path: Any) -> str:
    """Find the link that a path has followed again and again."""
    place = Path(str(path))
    links = [p for p in (*reversed(place.parents), place) if p.is_symlink()]
    return str(links[0]) if links else str(path)
