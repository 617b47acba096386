"""Pre-training on a folder of images, from a packaged recipe."""
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmpretrain.registry import MODELS

from ..checkpoints import CheckpointError
from ..checkpoints.load import RANDOM, PretrainedEncoder, fit_encoder
from ..config import remember, walk
from ..engine import ResumableRunner
from ..engine.checkpoint_folder import list_saved
from ..engine.device import adapt_to_device
from ..engine.work_dir import count_processes, work_dir_lock
from ..engine.work_dir import log_to as add_log_backends
from ..files import write_file
from ..models.utils import is_pretrained
from ..plain_config import PlainConfigError, format_config, parse_config
from .checks import ArgumentError, PathLike, check_log_to
from .recipe import ARGUMENTS, CONFIG_NAME, plan_pretraining

# What decides how a training goes on: not to be changed within one.
_LASTING = ('model', 'data_preprocessor', 'train_cfg', 'optim_wrapper',
            'param_scheduler', 'auto_scale_lr', 'train_dataloader.batch_size',
            'train_dataloader.dataset')


class Pretrained(NamedTuple):
    """What pre-training has left.

    Args:
        checkpoint (Path): The last checkpoint, for :func:`load_encoder`,
            ``cmae knn`` and all others.
        config (Path): The config that was made, which ``cmae train`` takes.
        out (Path): The folder of logs and checkpoints.
    """

    checkpoint: Path
    config: Path
    out: Path


def pretrain(data: PathLike,
             model: str = 'vit-b',
             *,
             epochs: Optional[int] = None,
             batch_size: Optional[int] = None,
             out: Optional[PathLike] = None,
             num_workers: Optional[int] = None,
             stats: Optional[PathLike] = None,
             init: Optional[PathLike] = None,
             cfg_options: Optional[Mapping[str, Any]] = None,
             resume: bool = True,
             log_to: Sequence[str] = (),
             launcher: str = 'none') -> Pretrained:
    """Pre-train a vision transformer on a folder of images.

    A packaged recipe is fitted to the images and to the machine, and written
    to ``<out>/config.py``, which ``cmae train`` and ``tools/dist_train.sh``
    take as well:

    - The learning rate is the recipe's, scaled linearly to the batch of all
      processes; one that is given in ``cfg_options`` is taken as it is.
    - The warm-up is the recipe's 40 of 300 epochs, in proportion and never
      longer than 40, followed by a cosine to 0.
    - Checkpoints are an epoch apart; where epochs are short, 500 steps or a
      tenth of the training, whichever is shorter.

    Called again with the same arguments it goes on from the last checkpoint
    in ``out``, exactly where it stopped.

    Example::

        import cmae_mm
        done = cmae_mm.pretrain('photos', 'vit-s', epochs=100)
        encoder = cmae_mm.load_encoder(done.checkpoint)

    Args:
        data (str | PathLike): Folder of images, with class folders or none
            (of ``data/train`` where there is one), or a store.
        model (str): 'vit-s', 'vit-b', 'vit-l', 'vit-h', 'convvit-b', the
            hybrid encoder, or 'mini', which trains on 64-pixel images on a
            CPU. Defaults to 'vit-b'.
        epochs (int, optional): Defaults to the recipe's: 300 (ViT-S, ViT-B,
            hybrid), 800 (ViT-L, ViT-H), or what 300 steps take (mini).
        batch_size (int, optional): Images of each process. Defaults to the
            recipe's where it fits into the accelerator's memory, on a CPU to
            16 (mini: 128); smaller if an epoch would have fewer than 4 steps.
        out (str | PathLike, optional): Folder of logs and checkpoints.
            Defaults to ``work_dirs/<model>_<folder's name>``.
        num_workers (int, optional): Processes that read images, for each
            training process. Defaults to the processor cores that there are,
            at most the recipe's 8 (mini: 2).
        stats (str | PathLike, optional): What ``cmae stats`` wrote about the
            images: their channels, type, mean, deviation and range. Defaults
            to None: colours of 8 bits, normalised by ImageNet's.
        init (str | PathLike, optional): Checkpoint whose encoder online and
            target branch start from, see :func:`load_encoder`; of the same
            width, depth and patch size. One of colour images starts one of
            other channels, too. Defaults to None, random weights.
        cfg_options (Mapping[str, Any], optional): Overrides of any other
            setting, values by dotted key.
        resume (bool): Whether to go on from the last checkpoint in ``out``.
            Otherwise those that are there are moved to ``previous_<N>``.
            Defaults to True.
        log_to (Sequence[str]): Where figures and pictures go beside the work
            folder: 'tensorboard', 'wandb', 'mlflow'. Defaults to nowhere.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi': what has started
            this process together with others. Defaults to 'none'.

    Returns:
        Pretrained: The last checkpoint, the config and the folder.

    Raises:
        ArgumentError: If an argument is none of what is allowed, there are
            too few images for the batch, or ``out`` holds a training with
            other settings.
        ConfigError: If an override cannot be meant so.
        OutputInUse: If another process trains in ``out``.
        ImageStatsError: If ``stats`` cannot be used, or
        ImageStatsConflict: if an override contradicts it.
        ImportError: If a library to log to is missing.
        CheckpointError: If ``init`` is of another width, depth, patch size or
            number of heads, or nothing could be saved, as where no parameter
            is finite.
    """
    check_log_to(log_to)
    cfg, summary, _ = plan_pretraining(
        data, model, epochs=epochs, batch_size=batch_size, out=out,
        num_workers=num_workers, stats=stats, init=init,
        cfg_options=cfg_options, processes=count_processes(launcher))
    remember(cfg, [f'{key}=' for key in cfg_options or {}])
    cfg.resume, cfg.launcher = resume, launcher
    with work_dir_lock(cfg.work_dir, launcher):
        return _train(cfg, summary, log_to)


def _train(cfg: Config, summary: str, log_to: Sequence[str]) -> Pretrained:
    """Train in a work folder that no other process writes to."""
    folder = Path(cfg.work_dir)
    config = folder / CONFIG_NAME
    if cfg.resume:
        _check_same_training(cfg, config)
    if not (cfg.resume and list_saved(cfg)):
        _check_start(cfg)
    text = f'{_as_comment(summary)}\n{format_config(cfg.to_dict())}'
    adapt_to_device(cfg)
    add_log_backends(cfg, log_to)
    runner = ResumableRunner.from_cfg(cfg)
    if is_main_process():
        write_file(config, text)
        print(summary, flush=True)
    runner.train()
    saved = list_saved(cfg)
    if not saved:
        raise CheckpointError(
            f'no checkpoint was saved in {folder}; the log there says why')
    return Pretrained(saved[0].path, config, folder)


def _as_comment(summary: str) -> str:
    lines = ['Made by `cmae pretrain`; `cmae train` takes it as well.', '',
             *summary.splitlines()[:-1]]
    # mmengine replaces {{...}} in comments, too.
    return '\n'.join(
        f'# {line}'.rstrip() for line in lines).replace('{{', '{ {')


def _check_start(cfg: Config) -> None:
    """Check that what the encoder starts from fits, before all is built."""
    backbone = cfg.model.backbone
    if not is_pretrained(backbone.get('init_cfg')):
        return
    start = PretrainedEncoder(
        **{k: v for k, v in backbone.init_cfg.items() if k != 'type'})
    if start.checkpoint != RANDOM:
        with torch.device('meta'):
            module = MODELS.build(backbone)
        fit_encoder(module, start.checkpoint, start.encoder)


def _read_before(config: Path) -> Mapping[str, Any]:
    """Read the config that a folder's training was started with."""
    try:
        return parse_config(config.read_text('utf-8'))
    except (PlainConfigError, OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f'{config} is no config that `cmae pretrain` has written '
            f'({error}); name another folder with out (--out), or start anew '
            'with resume=False (--no-resume)') from error


def _check_same_training(cfg: Config, config: Path) -> None:
    """Check that a folder's training, if it has one, has the same settings."""
    if not config.is_file() or not list_saved(cfg):
        return
    now, before = ({
        key: value
        for key, value in walk(c) if key.startswith(_LASTING)
        and not isinstance(value, (Mapping, list, tuple))
    } for c in (cfg.to_dict(), _read_before(config)))
    # First what has an argument, under its name: the rest follows from it.
    differ = sorted(
        (key for key in {*now, *before} if now.get(key) != before.get(key)),
        key=lambda key: (key not in ARGUMENTS, key))
    changed = [
        f'{ARGUMENTS.get(key, key)} {before.get(key)!r} -> {now.get(key)!r}'
        for key in differ
    ]
    if changed:
        more = len(changed) - 4
        listed = ', '.join(changed[:4]) + (
            f' and {more} more' if more > 0 else '')
        raise ArgumentError(
            f'{config.parent} holds a training with other settings '
            f'({listed}); give its arguments to go on, name another folder '
            'with out (--out), or start anew with resume=False '
            '(--no-resume)')
