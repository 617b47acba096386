"""Export of fine-tuned models to ONNX, timm and transformers."""
from typing import Any

from torch import Tensor

from ..checkpoints import CheckpointError, export_classifier
from ..checkpoints.onnx_export import random_images, write_onnx
from ..files import PathLike
from ..image_size import to_pair
from .detector_onnx import DeployedDetector
from .model import FinishedModel, load_model

_OUTPUTS = dict(classify=['softmax'], multilabel=['sigmoid of each class'],
                segment=['softmax of each pixel'],
                detect=['x1, y1, x2, y2 in pixels of the input',
                        'descending', 'numbers of the classes'])


def export_model(folder: PathLike, out: PathLike,
                 dtype: str = 'float32') -> float:
    """Export a fine-tuned model to ONNX, see ``cmae_mm.export_model``."""
    model = load_model(folder).cpu()
    deployed: Any = model
    model.names = ('scores', )
    if model.task == 'detect':
        if dtype != 'float32':
            raise CheckpointError(
                f'{folder} is a detector, whose boxes need float32, not '
                f'{dtype}')
        deployed = DeployedDetector(model).eval()

    def images(count: int) -> Tensor:
        shape = (count, model.in_channels, *to_pair(model.img_size))
        if model.task == 'detect':  # one image; another shape each time
            shape = (1, 3, model.img_size, model.img_size // count)
        return random_images(shape, model.model.data_preprocessor)

    return write_onnx(deployed, images, out, dict(
        classes=model.classes,
        task=model.task,
        img_size=model.img_size,
        channels=model.in_channels,
        short_side=_short_side(model),
        preprocessing=model.pipeline,
        images=model.images or 'RGB, 0 to 255',
        outputs=dict(zip(deployed.names, _OUTPUTS[model.task]))), dtype)


def export_folder(folder: PathLike, out: PathLike, to: str) -> None:
    """Export a fine-tuned classifier to timm or transformers.

    Args:
        folder (str | PathLike): Folder of ``cmae finetune``.
        out (str | PathLike): A folder, or for timm also a file.
        to (str): 'timm' or 'hf'.

    Raises:
        CheckpointError: If the model cannot be loaded or written.
    """
    model = load_model(folder).cpu()
    if model.task in ('segment', 'detect'):
        raise CheckpointError(
            f'{folder} is for the task {model.task}, but only classifiers can '
            f'be exported to {to}')
    export_classifier(model.model, str(out), to, model.classes, model.images,
                      _short_side(model), recipe=str(folder))


def _short_side(model: FinishedModel) -> Any:
    """Return the short side of the size that images are resized to cover."""
    return next((min(to_pair(t['scale'])) for t in model.pipeline
                 if t['type'] == 'ResizeImage'), None)
