"""A pre-trained vision transformer that turns images into features."""
from typing import Any, Sequence, Union

import numpy as np
import torch
from mmengine import fileio
from PIL import Image
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..datasets import LoadImage
from .centre_crop import CentreCrop
from .checks import POOLS, PathLike, check_choice

# ImageNet's, RGB: those of all packaged configs of ViT-S to ViT-H.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class PretrainedEncoder(nn.Module):
    """A vision transformer that turns images into features.

    What :func:`load_encoder` returns. The transformer itself is
    :attr:`backbone`, a :class:`~cmae_mm.models.TransferViT` or
    :class:`~cmae_mm.models.TransferConvViT`; a state dict of this module is an
    exported backbone, which every config takes.

    Args:
        backbone (TransferViT | TransferConvViT): With ``out_type='raw'``.
        pool (str): What ``forward`` gives: 'mean' of the patch tokens, 'cls',
            the class token, or 'patch', all patch tokens. Defaults to 'mean'.
        mean (Sequence[float]): Mean of each colour, RGB in 0 to 255. Defaults
            to ImageNet's.
        std (Sequence[float]): Standard deviation of each colour, likewise.

    Attributes:
        embed_dims (int): D, the width of features.
        img_size (int): Side of the square images in pixels.
        patch_size (int): Side of a patch in pixels.
        mean (torch.Tensor): (3, 1, 1).
        std (torch.Tensor): (3, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self,
                 backbone: Any,
                 pool: str = 'mean',
                 mean: Sequence[float] = MEAN,
                 std: Sequence[float] = STD) -> None:
        super().__init__()
        check_choice('pool', pool, POOLS)
        if pool == 'cls' and not backbone.with_cls_token:
            raise CheckpointError(
                'the class token takes no part in this encoder (a hybrid one '
                "has none, a target may leave it out); take pool='mean'")
        self.backbone = backbone
        self.pool = pool
        self.embed_dims: int = backbone.embed_dims
        self.img_size: int = backbone.img_size[0]
        # of a hybrid the total stride
        self.patch_size: int = getattr(
            backbone, 'patch_size',
            backbone.patch_embed.projection.kernel_size[0])
        for name, value in (('mean', mean), ('std', std)):
            self.register_buffer(
                name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self._crop = CentreCrop(self.img_size)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images (torch.Tensor): (N, C, H, W), RGB, normalised as by
                :meth:`preprocess` or :meth:`normalize`.

        Returns:
            torch.Tensor: (N, D); for ``pool='patch'`` (N, L, D), row-major
            over the grid of patches. A fine-tuned classifier's mean goes
            through the norm that it was trained with.
        """
        tokens = self.tokens(images)
        if self.pool == 'cls':
            return tokens[:, 0]
        patches = tokens[:, self.backbone.num_extra_tokens:]
        if self.pool == 'patch':
            return patches
        norm = getattr(self.backbone, 'ln2', None)
        pooled = patches.mean(dim=1)
        return pooled if norm is None else norm(pooled)

    def tokens(self, images: Tensor) -> Tensor:
        """Give all tokens, a class token first.

        Args:
            images (torch.Tensor): (N, C, H, W), RGB, normalised.

        Returns:
            torch.Tensor: (N, K + L, D), K = 1 where there is a class token,
            after the final norm where there is one (target encoders of the
            released recipe have none).
        """
        return self.backbone(images)[-1]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as in pre-training.

        Args:
            images (torch.Tensor): (..., C, H, W), RGB in 0 to 255, of any
                dtype.

        Returns:
            torch.Tensor: Of the same shape, float32.
        """
        return (images.float() - self.mean) / self.std

    def preprocess(self, image: Union[PathLike, Image.Image]) -> Tensor:
        """Turn an image into what ``forward`` takes a batch of.

        As every evaluation does: the short side is resized to 256/224 of the
        image size, the centre is cropped, and colours are normalised.

        Args:
            image (str | PathLike | PIL.Image.Image): A file, or an image.

        Returns:
            torch.Tensor: (C, H, W), normalised, on the encoder's device.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        if isinstance(image, Image.Image):
            array = np.ascontiguousarray(
                np.asarray(image.convert('RGB'))[..., ::-1])
        else:
            array = decode(fileio.get(str(image)), str(image))
        return self.normalize(self.crop(array).to(self.mean.device))

    def crop(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image as every evaluation does.

        Args:
            image (np.ndarray): (H, W, 3), BGR, uint8.

        Returns:
            torch.Tensor: (3, S, S), RGB, uint8; S is the image size.
        """
        return self._crop(image)


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode an image file as ``LoadImage`` does.

    Args:
        data (bytes): The file.
        name (str): For the error.

    Returns:
        np.ndarray: (H, W, 3), BGR, uint8.

    Raises:
        ValueError: If it is empty or cannot be decoded, or would lose
            something.
    """
    if not data:
        raise ValueError(f'{name} cannot be decoded: it is empty')
    return LoadImage().decode(data, name)
