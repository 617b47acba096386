"""Export of models to ONNX (extra='onnx')."""
import importlib
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn

from ..dependencies import MissingLibrary
from ..files import PathLike
from ..image_size import to_pair
from ..version import __version__
from . import CheckpointError

# Files of opset 18 and IR version 8 run in onnxruntime 1.15 and later, those
# in float16 in 1.17 and later.
OPSET, IR_VERSION = 18, 8
# Largest difference from torch's float32 outputs, relative to the largest
# value if that is above 1.
TOLERANCES = dict(float32=1e-4, float16=2e-2)
_TORCH = '2.6'
# Protobuf files are limited to 2 GiB; larger weights go to a separate file.
_LARGEST = 1_900_000_000


class DeployedEncoder(nn.Module):
    """An encoder with normalisation and all features as outputs.

    Args:
        encoder (PretrainedEncoder): The encoder.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.names: list[str] = ['features', 'patch_tokens']
        if self.encoder.backbone.num_class_tokens:
            self.names.append('cls_token')

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute features of images.

        Args:
            images (torch.Tensor): (N, C, H, W), float32, in the units of the
                images: colours as RGB in 0 to 255.

        Returns:
            tuple: The mean of the patch tokens, (N, D), all of them,
            (N, L, D), and the class token, (N, D), if there is one.
        """
        tokens = self.encoder.tokens(self.encoder.normalize(images))
        pools = ('mean', 'patch', 'cls')[:len(self.names)]
        return tuple(self.encoder.pooled(tokens, pool) for pool in pools)


def export_onnx(encoder: nn.Module, path: PathLike, dtype: str = 'float32',
                **record: Any) -> float:
    """Write an encoder as an ONNX file, and compare its features with torch.

    The batch size is dynamic. Normalisation is part of the file; sizes and
    the meaning of inputs and outputs are in its metadata.

    Args:
        encoder (PretrainedEncoder): The encoder, on the CPU.
        path (str | PathLike): The file, ``.onnx``. Weights of more than 1.9 GB
            go to ``<name>.onnx.data`` in the same folder.
        dtype (str): See :func:`write_onnx`. Defaults to 'float32'.
        **record: Further metadata: recipe, epoch...

    Returns:
        float: The largest difference between ONNX Runtime's features and
        torch's.

    Raises:
        CheckpointError: If the file cannot be written, or its features differ
            by more than 1e-4 (float16: 0.02), relative to the largest value if
            that is above 1.
        MissingLibrary: If torch is older than 2.6.
    """
    model = DeployedEncoder(encoder.eval()).eval()
    shape = (encoder.in_channels, *to_pair(encoder.img_size))
    return write_onnx(
        model, lambda count: random_images((count, *shape), encoder), path,
        dict(record, **_describe(model)), dtype)


def write_onnx(model: Any, images: Callable[[int], Tensor], path: PathLike,
               meta: Mapping[str, Any], dtype: str = 'float32') -> float:
    """Write a model as an ONNX file, and compare its outputs with torch.

    Args:
        model (nn.Module): A model with one input, on the CPU; ``names`` lists
            its outputs. A detector has ``dynamic_shapes``, the dimensions of
            its input that vary, by default the first, and ``match``, which
            pairs outputs for the comparison.
        images (Callable): Makes a batch of the given number of images.
        path (str | PathLike): The file, ``.onnx``.
        meta (Mapping[str, Any]): Metadata, values by name.
        dtype (str): 'float32', or 'float16' for weights and computation in
            half precision. Inputs, normalisation and outputs are in float32.
            Defaults to 'float32'.

    Returns:
        float: The largest difference between outputs of ONNX Runtime and
        torch.

    Raises:
        CheckpointError: See :func:`export_onnx`.
        MissingLibrary: See :func:`export_onnx`.
    """
    if Version(torch.__version__.split('+')[0]) < Version(_TORCH):
        raise MissingLibrary(
            f'exporting to ONNX needs torch {_TORCH} or later, but '
            f'{torch.__version__} is installed')
    onnx = importlib.import_module('onnx')
    file = Path(path).expanduser()
    program = _export_program(model, images(2))
    program.model.ir_version = IR_VERSION
    program.model.metadata_props.update({
        name: json.dumps(value, default=str) for name, value in dict(
            meta, dtype=dtype, cmae_mm=__version__).items()})
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
                prefix=f'.{file.name}.', dir=file.parent) as folder:
            temporary = Path(folder) / file.name
            program.save(str(temporary), external_data=size > _LARGEST)
            if dtype == 'float16':
                _halve(onnx, temporary, size / 2 > _LARGEST)
            onnx.checker.check_model(str(temporary))
            # Another batch size than that of the traced batch.
            difference = _compare(model, images(3), temporary,
                                  TOLERANCES[dtype])
            # Weights first: the main file marks a complete export.
            for part in sorted(Path(folder).iterdir(), reverse=True):
                os.replace(part, file.parent / part.name)
    except OSError as error:
        raise CheckpointError(
            f'{file} could not be written: {error}') from error
    print(f'{path}: ONNX Runtime differs from torch by {difference:.1e}')
    return difference


def random_images(shape: Sequence[int], preprocessor: Any) -> Tensor:
    """Draw random images, in units of which ``mean`` and ``std`` are."""
    generator = torch.Generator().manual_seed(shape[0])
    noise = torch.randn(*shape, generator=generator)
    return noise * preprocessor.std + preprocessor.mean


def _export_program(model: Any, images: Tensor) -> Any:
    """Trace a model with dynamic shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.onnx.export(
            model, (images, ),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=['images'],
            output_names=list(model.names),
            dynamic_shapes=dict(images=getattr(
                model, 'dynamic_shapes', {0: torch.export.Dim('batch')})))


def _halve(onnx: Any, file: Path, external: bool) -> None:
    """Convert a file to float16, from the first layer on.

    Normalisation stays in float32, because inputs may exceed the range of
    float16.
    """
    float16, onnx_model = (
        importlib.import_module(f'onnxruntime.transformers.{name}')
        for name in ('float16', 'onnx_model'))
    loaded = onnx.load(str(file))
    file.with_name(f'{file.name}.data').unlink(missing_ok=True)
    before = {node.name for node in itertools.takewhile(
        lambda node: node.op_type not in ('Conv', 'MatMul', 'Gemm'),
        loaded.graph.node)}
    converted = float16.convert_float_to_float16(
        loaded, keep_io_types=True, disable_shape_infer=True,
        node_block_list=list(before))
    cast = {node.output[0]: node.input[0] for node in converted.graph.node
            if node.op_type == 'Cast'}
    for node in converted.graph.node:
        for i, name in enumerate(node.input):
            if node.name in before and cast.get(cast.get(name)) == 'images':
                node.input[i] = 'images'
    onnx_model.OnnxModel(converted).topological_sort()
    onnx.save_model(converted, str(file), save_as_external_data=external,
                    location=f'{file.name}.data')


def _describe(model: DeployedEncoder) -> dict[str, Any]:
    """Collect the metadata of an encoder."""
    encoder = model.encoder
    mean = 'mean of the patch tokens' + (
        ", through the classifier's norm"
        if hasattr(encoder.backbone, 'ln2') else '')
    meanings = (mean, 'all of them, row by row', 'the class token')
    return dict(
        img_size=encoder.img_size,
        short_side=encoder.centre_crop.short_side,
        patch_size=encoder.patch_size,
        channels=encoder.in_channels,
        embed_dims=encoder.embed_dims,
        normalised_by=dict(mean=encoder.mean.flatten().tolist(),
                           std=encoder.std.flatten().tolist()),
        images=encoder.images or 'RGB, 0 to 255',
        outputs=dict(zip(model.names, meanings)))


def _compare(model: Any, images: Tensor, file: Path, tolerance: float
             ) -> float:
    """Compare outputs of ONNX Runtime with those of torch.

    Returns:
        float: The largest difference.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(file), providers=['CPUExecutionProvider'])
    with torch.no_grad():
        outputs = model(images)
    if isinstance(outputs, Tensor):
        outputs = (outputs, )
    found = session.run(list(model.names), {'images': images.numpy()})
    wanted = [output.numpy() for output in outputs]
    if hasattr(model, 'match'):
        found, wanted = model.match(found, wanted)
    worst = 0.
    for name, theirs, ours in zip(model.names, found, wanted):
        difference = float(np.abs(theirs - ours).max(initial=0))
        if not difference <= tolerance * np.abs(ours).max(initial=1):
            raise CheckpointError(
                f'{name} of the ONNX file differ from those of torch by '
                f'{difference:.2g}, so the file was removed; the versions of '
                'torch, onnx and onnxruntime may be incompatible')
        worst = max(worst, difference)
    return worst
