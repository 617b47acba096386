"""mmengine's runner, made to lose nothing and to load nothing by half."""
from typing import Any, Callable, Dict, Sequence, Tuple, Union

from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.registry import RUNNERS

from ..checkpoints.errors import CheckpointError
from ..checkpoints.files import ready_to_resume
from .hooks.unwrap import unwrapped_model
from .loading import RESUME, START, TEST, check_training_state, fit


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's ``Runner`` that the commands of this project start.

    Other tools take it where a config says ``runner_type='ResumableRunner'``.

    What it loads fits the model, or is refused before anything is loaded. The
    config's ``load_partial=True`` lets ``load_from`` take what fits.
    """

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, see ``Runner.resume``.

        Raises:
            CheckpointError: If it holds no training state, or does not fit.
        """
        self._resume = True  # load_checkpoint and hooks ask for it
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(self,
                        filename: str,
                        map_location: Union[str, Callable] = 'cpu',
                        strict: bool = True,
                        revise_keys: Sequence[Tuple[str, str]] = (
                            (r'^module\.', ''), )) -> Dict[str, Any]:
        """Load a checkpoint that fits the model, or nothing.

        A CMAE that starts a training may take an encoder, an MAE or a
        released CMAE as well; its target then starts as a copy of the online
        branch, and the log says what is new.

        Args:
            filename (str): A file, or what mmengine's ``CheckpointLoader``
                takes.
            map_location (str | Callable): See ``torch.load``. Defaults to
                'cpu'.
            strict (bool): Not used: it always is.
            revise_keys (Sequence[Tuple[str, str]]): Patterns that are
                replaced in names. Defaults to taking off ``module.``.

        Returns:
            Dict[str, Any]: The checkpoint.

        Raises:
            CheckpointError: If it cannot be read, or does not fit.
        """
        trains = not isinstance(self._train_loop, (dict, type(None)))
        purpose = RESUME if self._resume else START if trains else TEST
        model = unwrapped_model(self)
        if isinstance(model, BaseTTAModel):
            model = model.module
        try:
            checkpoint = ready_to_resume(
                CheckpointLoader.load_checkpoint(filename, map_location,
                                                 self.logger))
            if purpose == RESUME:
                check_training_state(checkpoint)
            state, lines, copy_target = fit(
                model, checkpoint, purpose, revise_keys,
                bool(self.cfg.get('load_partial', False)))
        except FileNotFoundError as error:
            raise CheckpointError(str(error)) from None
        except CheckpointError as error:
            text = str(error)
            named = str(filename) in text.split('\n')[0]
            raise CheckpointError(
                text if named else f'{filename}: {text}') from None
        checkpoint = (checkpoint if 'state_dict' in checkpoint else {})
        checkpoint['state_dict'] = state
        # Hooks may take the state apart, as EMAHook does.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'], strict=False)
        if copy_target:
            model.target.copy_from(model.online)
        self._has_loaded = True
        self.logger.info('\n'.join(
            [f'Every key of {filename} was loaded.' if purpose != START else
             f'Loaded {filename}.', *lines]))
        return checkpoint
