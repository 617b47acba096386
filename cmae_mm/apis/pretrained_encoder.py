"""A pre-trained vision transformer that turns images into features."""
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..evaluation.centre_crop import CentreCrop
from ..models.utils import check_choice

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
        mean (Sequence[float]): Mean of each of the C channels, in the units of
            the images: colours as RGB in 0 to 255. Defaults to ImageNet's.
        std (Sequence[float]): Standard deviation of each channel, likewise.
        images (Mapping[str, Any], optional): How images are decoded, arguments
            of ``LoadImage``. Defaults to None, colours of 8 bits.
        value_range (Sequence[Sequence[float]], optional): Black and white of
            each channel in pictures. Defaults to 0 and 255 for uint8, and to
            two deviations around the mean for others.

    Attributes:
        embed_dims (int): D, the width of features.
        img_size (int): Side of the square images in pixels.
        patch_size (int): Side of a patch in pixels.
        in_channels (int): C, the channels of the images.
        mean (torch.Tensor): (C, 1, 1).
        std (torch.Tensor): (C, 1, 1).
        images (Dict[str, Any] | None): How images are decoded.
        centre_crop (CentreCrop): Decodes, resizes and crops images.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    width: Tensor

    def __init__(self,
                 backbone: Any,
                 pool: str = 'mean',
                 mean: Sequence[float] = MEAN,
                 std: Sequence[float] = STD,
                 images: Optional[Mapping[str, Any]] = None,
                 value_range: Optional[Sequence[Sequence[float]]] = None
                 ) -> None:
        super().__init__()
        check_choice('pool', pool, ('mean', 'cls', 'patch'))
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
        self.in_channels: int = len(self.mean)
        self.images = dict(images) if images else None
        self.centre_crop = CentreCrop(self.img_size, images)
        self._set_range(value_range)

    def _set_range(self, value_range: Optional[Sequence[Sequence[float]]]
                   ) -> None:
        """Note what pictures show as black and white, as preprocessors do."""
        self.is_byte_range = value_range is None and (
            self.centre_crop.settings.dtype == 'uint8')
        low, high = self.mean - 2 * self.std, self.mean + 2 * self.std
        if value_range is not None:
            low, high = (torch.tensor(end).float().view(-1, 1, 1)
                         for end in value_range)
        self.register_buffer('low', low, persistent=False)
        self.register_buffer('width', high - low, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images (torch.Tensor): (N, C, H, W), colours as RGB, normalised as
                by :meth:`preprocess` or :meth:`normalize`.

        Returns:
            torch.Tensor: (N, D); for ``pool='patch'`` (N, L, D), row-major
            over the grid of patches. A fine-tuned classifier's mean goes
            through the norm that it was trained with.
        """
        return self.pooled(self.tokens(images), self.pool)

    def pooled(self, tokens: Tensor, pool: str) -> Tensor:
        """Give the features that ``pool`` names.

        Args:
            tokens (torch.Tensor): (N, K + L, D), see :meth:`tokens`.
            pool (str): 'mean', 'cls' or 'patch'.

        Returns:
            torch.Tensor: (N, D), or (N, L, D) for 'patch'.
        """
        if pool == 'cls':
            return tokens[:, 0]
        patches = tokens[:, self.backbone.num_extra_tokens:]
        if pool == 'patch':
            return patches
        norm = getattr(self.backbone, 'ln2', None)
        mean = patches.mean(dim=1)
        return mean if norm is None else norm(mean)

    def tokens(self, images: Tensor) -> Tensor:
        """Give all tokens, a class token first.

        Args:
            images (torch.Tensor): (N, C, H, W), colours as RGB, normalised.

        Returns:
            torch.Tensor: (N, K + L, D), K = 1 where there is a class token,
            after the final norm where there is one (target encoders of the
            released recipe have none).

        Raises:
            ValueError: If images are of another size or number of channels,
                no floats, or none.
        """
        self._check(images)
        return self.backbone(images)[-1]

    def _check(self, images: Tensor) -> None:
        wanted = (self.in_channels, self.img_size, self.img_size)
        if not isinstance(images, Tensor):
            found = f'a {type(images).__name__}'
        elif (tuple(images.shape[1:]) == wanted and images.shape[0]
              and images.is_floating_point()):
            return
        else:
            found = f'{tuple(images.shape)} of {images.dtype}'
        raise ValueError(
            'the encoder takes normalised float images, (N, {}, {}, {}) with '
            'N of 1 or more, but got {}; encoder.preprocess makes them of any '
            'image, and load_encoder(..., img_size=...) resamples positions '
            'for another size'.format(*wanted, found))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as in pre-training.

        Args:
            images (torch.Tensor): (..., C, H, W), of any dtype, colours as
                RGB, in 0 to 255 or the units that the encoder was trained
                with.

        Returns:
            torch.Tensor: Of the same shape, float32.
        """
        return (images.float() - self.mean) / self.std

    def encode(self, images: Tensor) -> Tensor:
        """Compute features of images that are not normalised.

        Args:
            images (torch.Tensor): See :meth:`normalize`, on any device.

        Returns:
            torch.Tensor: See :meth:`forward`.
        """
        return self(self.normalize(images.to(self.mean.device)))

    def preprocess(self, image: Any) -> Tensor:
        """Turn an image into what ``forward`` takes a batch of.

        As every evaluation does: the image is decoded by the encoder's
        settings and turned upright, its short side is resized to 256/224 of
        the image size, the centre is cropped and normalised.

        Args:
            image (Any): A file's name, its bytes, an open file, a PIL image
                or an array. An array is (H, W, C), or (H, W) of one channel,
                colours as RGB. A PIL image is rotated by its EXIF data, as
                its file is.

        Returns:
            torch.Tensor: (C, H, W), normalised, on the encoder's device.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If it is no image, but for instance a list of images.
            ValueError: If it cannot be decoded, or does not fit the encoder's
                channels and type.
        """
        crop = self.crop(self.centre_crop.read(image))
        return self.normalize(crop.to(self.mean.device))

    @property
    def is_bgr(self) -> bool:
        """Whether :meth:`decode` gives colours as BGR."""
        return self.centre_crop.settings.is_bgr

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Decode an image file, see :meth:`CentreCrop.decode`."""
        return self.centre_crop.decode(data, name)

    def crop(self, image: np.ndarray) -> Tensor:
        """Resize and crop an image as every evaluation does.

        Args:
            image (np.ndarray): (H, W, C), as :meth:`decode` gives it.

        Returns:
            torch.Tensor: (C, S, S), of its type, colours as RGB; S is the
            image size.
        """
        return self.centre_crop(image)
