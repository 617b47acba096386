"""An encoder as an ONNX file, as it is deployed (extra='onnx')."""
import importlib
import json
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Tuple

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..dependencies import MissingLibrary
from ..version import __version__
from .checks import PathLike, check_onnx_file
from .pretrained_encoder import PretrainedEncoder

OPSET = 18
# What the file's features may differ by from those of torch; relative to the
# largest where that is more than 1.
TOLERANCE = 1e-4
_TORCH = '2.6'
# A file of protobuf holds no more than 2 GiB; larger weights stand beside it.
_LARGEST = 1_900_000_000


class DeployedEncoder(nn.Module):
    """An encoder with its normalisation, and all features as outputs.

    Args:
        encoder (PretrainedEncoder): The encoder.
    """

    def __init__(self, encoder: PretrainedEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        names = ['features', 'patch_tokens']
        if encoder.backbone.num_extra_tokens:
            names.append('cls_token')
        self.names: Tuple[str, ...] = tuple(names)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Compute features of images as they are.

        Args:
            images (torch.Tensor): (N, C, S, S), float32, in the units of the
                images: colours as RGB in 0 to 255.

        Returns:
            tuple: The mean of the patch tokens, (N, D), all of them,
            (N, L, D), and the class token, (N, D), where there is one.
        """
        encoder = self.encoder
        tokens = encoder.tokens(encoder.normalize(images))
        outputs = [encoder.pooled(tokens, name) for name in ('mean', 'patch')]
        if 'cls_token' in self.names:
            outputs.append(encoder.pooled(tokens, 'cls'))
        return tuple(outputs)


def export_onnx(encoder: PretrainedEncoder, path: PathLike,
                **facts: Any) -> float:
    """Write an encoder as an ONNX file, and compare that with torch.

    The batch is of any size. Normalisation is part of the file; sizes and what
    else must be known stand in its metadata.

    Args:
        encoder (PretrainedEncoder): The encoder, on the CPU.
        path (str | PathLike): The file, ``.onnx``. Weights of more than 1.9 GB
            go into ``<name>.onnx.data`` beside it.
        **facts: Further facts that the metadata state: recipe, epoch...

    Returns:
        float: The largest difference between ONNX Runtime's features and
        torch's.

    Raises:
        ArgumentError: If the ending is another, or a folder has that name.
        CheckpointError: If the file cannot be written, or its features differ
            by more than 1e-4, or 1e-4 of the largest where that is above 1.
        MissingLibrary: If a library for it is not installed, or torch is
            older than 2.6.
    """
    check_onnx_file(path)
    return write_onnx(DeployedEncoder(encoder.eval()).eval(),
                      partial(_images, encoder), path,
                      _describe(encoder, facts))


def write_onnx(model: Any, images: Callable[[int], Tensor], path: PathLike,
               meta: Mapping[str, Any]) -> float:
    """Write a model as an ONNX file, and compare that with torch.

    Args:
        model (nn.Module): A model of one input, on the CPU, whose outputs
            ``names`` lists.
        images (Callable): Makes a batch of so many images.
        path (str | PathLike): The file, ``.onnx``.
        meta (Mapping[str, Any]): Metadata, values by name.

    Returns:
        float: The largest difference between outputs of ONNX Runtime and
        torch.

    Raises:
        CheckpointError: See :func:`export_onnx`.
        MissingLibrary: See :func:`export_onnx`.
    """
    file = Path(path).expanduser()
    onnx = _require_libraries()
    program = _translate(model, images(2))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
                prefix=f'.{file.name}.', dir=file.parent) as folder:
            aside = Path(folder) / file.name
            program.model.metadata_props.update({
                name: json.dumps(value, default=str)
                for name, value in dict(meta, cmae_mm=__version__).items()})
            program.save(str(aside), external_data=size > _LARGEST)
            onnx.checker.check_model(str(aside))
            # Another batch size than that which was traced.
            difference = _compare(model, images(3), aside)
            # Weights first: the file itself says that all is there.
            for part in sorted(Path(folder).iterdir(), reverse=True):
                os.replace(part, file.parent / part.name)
    except OSError as error:
        raise CheckpointError(
            f'{file} could not be written: {error}') from error
    return difference


def _require_libraries() -> Any:
    """Import onnx, with a torch that can write for it."""
    if Version(torch.__version__.split('+')[0]) < Version(_TORCH):
        raise MissingLibrary(
            f'exporting to ONNX needs torch {_TORCH} or later, but '
            f'{torch.__version__} is installed')
    return importlib.import_module('onnx')


def _images(encoder: PretrainedEncoder, count: int) -> Tensor:
    """Make random images of the encoder's units."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(count, encoder.in_channels, encoder.img_size,
                        encoder.img_size, generator=generator)
    return noise * encoder.std + encoder.mean


def _translate(model: Any, images: Tensor) -> Any:
    """Trace the model with a batch of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.onnx.export(
            model, (images, ),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=['images'],
            output_names=list(model.names),
            dynamic_shapes=dict(images={0: torch.export.Dim('batch')}))


def _describe(encoder: PretrainedEncoder, facts: Dict[str, Any]
              ) -> Dict[str, Any]:
    """Collect what a deployer must know."""
    return dict(
        facts,
        img_size=encoder.img_size,
        patch_size=encoder.patch_size,
        channels=encoder.in_channels,
        embed_dims=encoder.embed_dims,
        normalised_by=dict(mean=encoder.mean.flatten().tolist(),
                           std=encoder.std.flatten().tolist()),
        images=encoder.images or 'RGB, 0 to 255',
        outputs=_meanings(encoder))


def _meanings(encoder: PretrainedEncoder) -> Dict[str, str]:
    """Say how tokens become each output."""
    pooled = 'mean of the patch tokens'
    if hasattr(encoder.backbone, 'ln2'):
        pooled += ", through the classifier's norm"
    meanings = dict(features=pooled, patch_tokens='all of them, row by row')
    if encoder.backbone.num_extra_tokens:
        meanings['cls_token'] = 'the class token'
    return meanings


def _compare(model: Any, images: Tensor, file: Path) -> float:
    """Compare outputs of ONNX Runtime with those of torch."""
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(file), providers=['CPUExecutionProvider'])
    with torch.no_grad():
        outputs = model(images)
    if isinstance(outputs, Tensor):
        outputs = (outputs, )
    wanted = [output.numpy() for output in outputs]
    found = session.run(list(model.names), {'images': images.numpy()})
    worst = 0.
    for name, theirs, ours in zip(model.names, found, wanted):
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE * max(1., float(np.abs(ours).max())):
            raise CheckpointError(
                f'{name} of the ONNX file differ from those of torch by '
                f'{difference:.2g}, so that it was not kept; the versions of '
                'torch, onnx and onnxruntime may not fit each other')
        worst = max(worst, difference)
    return worst
