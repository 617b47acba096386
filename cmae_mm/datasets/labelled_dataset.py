"""Labelled images, from class folders or an annotation file."""
import os

from mmengine.dataset import BaseDataset
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from .image_folder import IMG_EXTENSIONS, circular_links_explained


def count_classes(dataset: BaseDataset) -> int:
    """Count the classes of a labelled data set.

    Args:
        dataset (BaseDataset): A data set from class folders, whose number is
            known, or from an annotation file, all labels of which are looked
            at.

    Returns:
        int: The number of classes, or the largest label plus one.

    Raises:
        ValueError: If there are no images, or images without labels.
    """
    if len(dataset) == 0:
        raise ValueError('there are no images')
    classes = dataset.metainfo.get('classes')
    looked_at = range(1 if classes else len(dataset))
    labels = {dataset.get_data_info(i).get('gt_label') for i in looked_at}
    if None in labels:
        raise ValueError(
            'there are images without labels; needed are class folders, or an '
            'annotation file with labels')
    return len(classes) if classes else max(labels) + 1


@DATASETS.register_module()
class LabelledDataset(CustomDataset):
    """mmpretrain's ``CustomDataset`` that says what is wrong with a folder.

    Args:
        data_root (str): The data folder.
        data_prefix (str): Folder in it, with one folder of images per class.
        ann_file (str): File with lines ``<path> <label>`` instead of class
            folders, in ``data_root`` unless absolute. Defaults to ''.
        **kwargs: Other arguments of ``CustomDataset``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there are no images, or no labels.
    """

    def __init__(self, data_root: str = '', **kwargs) -> None:
        super().__init__(
            data_root=os.path.expanduser(data_root),
            **{'extensions': IMG_EXTENSIONS, **kwargs})

    def _find_samples(self):
        if not os.path.isdir(self.img_prefix):
            raise FileNotFoundError(
                f'there is no folder {self.img_prefix!r}; set the environment '
                'variable DATA_ROOT to a folder that has it')
        try:
            with circular_links_explained(self.img_prefix):
                return super()._find_samples()
        except (RuntimeError, FileNotFoundError) as error:
            loose = sum(
                self.is_valid_file(f.name) for f in os.scandir(self.img_prefix)
                if f.is_file())
            raise ValueError(
                f'no labelled images in {self.img_prefix!r}: needed are class '
                f'folders with images in it, but it has {loose} images beside '
                'and none in class folders') from error

    def load_data_list(self):
        """List the images and their labels."""
        if self.ann_file and not os.path.isfile(self.ann_file):
            raise FileNotFoundError(
                f'there is no annotation file {self.ann_file!r}; shares of the'
                ' labels are drawn by `cmae splits`')
        try:
            data_list = super().load_data_list()
        except ValueError as error:
            if not self.ann_file:
                raise
            raise ValueError(
                f'{self.ann_file} needs lines "<path> <label>", the label a '
                f'number from 0 ({error})') from error
        if not data_list:
            raise ValueError(f'{self.ann_file} is empty')
        return data_list
