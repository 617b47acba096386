"""Commands ``pretrain``, ``train``, ``test`` and ``batch-size``."""
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ..config import ConfigError, load_config
from ..dependencies import find_checkpoint, name_of, require
from .arguments import (CfgOptions, Checkpoint, ConfigName, Count, Data,
                        Launcher, Output, OutputFolder, PathLike, Positive,
                        Range, Size, Stats, Text, command, interruptible)

if TYPE_CHECKING:
    from mmengine.config import Config

LogTo = Annotated[
    Sequence[Literal['tensorboard', 'wandb', 'mlflow', 'file']], Text(
        'Also log to tensorboard, wandb or mlflow. The log file in the work '
        'folder is always written.')]
# Share of a GPU's memory for the CUDA context and NCCL's buffers.
_HEADROOM = 0.1
_CONTINUES = 'the checkpoints so far are in the work folder; the same command'


def check_log_to(log_to: LogTo, **others: Any) -> None:
    """Check that the libraries of the log back ends are installed.

    Raises:
        MissingLibrary: If one is missing.
    """
    for name in log_to:
        if name != 'file':
            require(name, f'logging to {name}', 'logging')


class Pretrained(NamedTuple):
    """Result of a pre-training.

    Args:
        checkpoint (Path): The last checkpoint, for :func:`load_encoder`,
            ``cmae knn`` and all others.
        config (Path): The written config, which ``cmae train`` takes.
        out (Path): The folder of logs and checkpoints.
    """

    checkpoint: Path
    config: Path
    out: Path


@command(check=check_log_to)
def pretrain(data: Data,
             model: Literal['vit-s', 'vit-b', 'vit-l', 'vit-h', 'convvit-b',
                            'mini'] = 'vit-b',
             *,
             epochs: Annotated[int, Range(1, 10 ** 6)] | None = None,
             batch_size: Annotated[int, Range(2)] | None = None,
             out: OutputFolder | None = None,
             num_workers: Count | None = None,
             img_size: Size | tuple[Size, Size] | None = None,
             stats: Stats | None = None,
             init: Checkpoint | None = None,
             recipe: Literal['paper', 'small'] | None = None,
             cfg_options: CfgOptions = (),
             resume: bool = True,
             log_to: LogTo = (),
             launcher: Launcher = 'none') -> Pretrained:
    """Pre-train on any folder of images.

    Adapts a packaged config to the images and the machine and writes it to
    config.py in the work folder, for `cmae train` and tools/dist_train.sh. The
    learning rate is scaled to the batch of all processes, unless --cfg-options
    sets it: by the square root below 100,000 images, otherwise in proportion.
    The warm-up takes 40 of 300 epochs, in proportion and at most 40, followed
    by a cosine to 0. A checkpoint is saved every epoch or, if epochs are
    short, every 500 steps or tenth of the training, whichever is shorter.

    The same command resumes an interrupted training exactly.

    Example::

        $ cmae pretrain photos --model vit-s --epochs 100
        $ cmae pretrain spectrograms --img-size 128 512
        $ torchrun --nproc_per_node 8 -m cmae_mm pretrain photos \
--launcher pytorch
        $ tools/dist_train.sh work_dirs/vit-b_photos/config.py 8

        import cmae_mm
        done = cmae_mm.pretrain('photos', 'vit-s', epochs=100)
        encoder = cmae_mm.load_encoder(done.checkpoint)

    Args:
        data: Folder of images with or without class folders, list, store or
            shards. If there is DATA/train, only this part is used.
        model: Size of the vision transformer; convvit-b is the hybrid
            encoder, mini is for 64-pixel images and a CPU. Defaults to vit-b.
        epochs: Number of epochs. Defaults to 300 (vit-s, vit-b, convvit-b),
            800 (vit-l, vit-h) or 300 steps (mini); below 100,000 images at
            least 5,000 steps.
        batch_size: Images per step of each process. Defaults to the recipe's
            if it fits into GPU memory, on a CPU to 16 (mini: 128). Below
            100,000 images at most 64 to 256 over all processes. Reduced if an
            epoch would have fewer than 4 steps.
        out: Folder of logs and checkpoints. Defaults to
            work_dirs/<model>_<folder of DATA>.
        num_workers: Data workers of each process. Defaults to one for each CPU
            core, at most 8 (mini: 2).
        img_size: Size of the views in pixels: the side of a square, or height
            and width, multiples of two patches. The pixel shift is scaled to
            the shorter side. Defaults to 224 (mini: 64).
        stats: File of `cmae stats`: required for images that are not 8-bit
            colour; otherwise sets their own mean and standard deviation.
        init: Checkpoint that initialises the encoder of both branches: a file
            or folder of this project, MAE, DINO, timm or Hugging Face, with
            the same width, depth and patch size.
        recipe: Recipe of the paper, or for few images. Defaults to small below
            100,000 images.
        cfg_options: Other settings of the config to override. Nested keys are
            written with dots.
        resume: Start a new training and move existing checkpoints to
            previous_<N>.

    Returns:
        Pretrained: The last checkpoint, the config and the folder.

    Raises:
        ArgumentError: If an argument is invalid, there are too few images for
            the batch, or ``out`` holds a training with other settings.
        ConfigError: If an override is invalid.
        OutputInUse: If another process trains in ``out``.
        ImageStatsError: If ``stats`` cannot be used, or
        ImageStatsConflict: if an override contradicts it.
        MissingLibrary: If a library to log to is missing.
        CheckpointError: If ``init`` is of another width, depth, patch size or
            number of heads, or nothing could be saved.
    """
    from mmengine.dist import is_main_process

    from ..engine.device import count_processes
    from .pretraining import plan_pretraining, run_pretraining
    with interruptible(f'{_CONTINUES} resumes'):
        plan = plan_pretraining(
            data, model, epochs=epochs, batch_size=batch_size, out=out,
            num_workers=num_workers, img_size=img_size, stats=stats, init=init,
            recipe=recipe,
            cfg_options=cfg_options, processes=count_processes(launcher))
        checkpoint, config = run_pretraining(plan, resume, launcher, log_to)
    if is_main_process():
        print(f'Pre-trained: {checkpoint}\nTo compute features: cmae embed '
              f'{data} {checkpoint} --out features.npz')
    return Pretrained(checkpoint, config, config.parent)


@command(check=check_log_to)
def train(config: ConfigName,
          *,
          work_dir: OutputFolder | None = None,
          resume: bool | PathLike | None = None,
          amp: bool = False,
          auto_scale_lr: bool = False,
          log_to: LogTo = (),
          cfg_options: CfgOptions = (),
          launcher: Launcher = 'none') -> dict[str, Any]:
    """Train a config: pre-training or transfer.

    Example::

        $ cmae train cmae_vit-s_300e --work-dir work_dirs/mine
        $ tools/dist_train.sh configs/cmae_vit-b_800e.py 8

    Args:
        config: Config file, or the name of a packaged one, whose data are in
            the folder $DATA_ROOT.
        work_dir: Folder of logs and checkpoints. Defaults to
            work_dirs/<config>.
        resume: Resume from the last checkpoint of the work folder, or from
            the given one. Defaults to the setting of the config.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the learning rate to the batch size over all GPUs.

    Returns:
        dict[str, Any]: ``work_dir``, ``epochs`` and ``iterations``.

    Raises:
        ConfigError: If the config has nothing to train, or an override is
            invalid.
        OutputInUse: If another process trains in the work folder.
    """
    from ..engine.device import work_dir_lock
    from ..engine.runner import build_runner
    cfg = _load(config, cfg_options, launcher, work_dir)
    if not all(map(cfg.get, ('model', 'train_dataloader', 'train_cfg',
                             'optim_wrapper'))):
        raise ConfigError(
            f'{config} is not a training config; it must define model, '
            'train_dataloader, train_cfg and optim_wrapper')
    if amp:
        kind = name_of(cfg.optim_wrapper.get('type', 'OptimWrapper'))
        if kind == 'OptimWrapper':
            cfg.optim_wrapper.type = 'mmpretrain.AutoAmpOptimWrapper'
        elif 'Amp' not in kind or cfg.optim_wrapper.get('dtype') == 'float32':
            raise ConfigError(
                '--amp needs an optim_wrapper with mixed precision, but '
                f'{config} has type={kind!r} and '
                f'dtype={cfg.optim_wrapper.get("dtype")!r}; set '
                "optim_wrapper.dtype='bfloat16', or leave out --amp")
    if auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ConfigError(
                f'--auto-scale-lr needs auto_scale_lr = '
                f'dict(base_batch_size=...) in {config}; add it or remove the '
                'option')
        cfg.auto_scale_lr.enable = True
    if isinstance(resume, bool):
        cfg.resume = resume
    elif resume is not None:
        source = resume if '://' in str(resume) else find_checkpoint(resume)
        cfg.resume, cfg.resume_from = True, str(source)
    option = ' ' if cfg.get('resume') else ' with --resume '
    with work_dir_lock(cfg.work_dir, launcher), interruptible(
            f'{_CONTINUES}{option}resumes'):
        runner = build_runner(cfg, log_to)
        runner.train()
    return dict(work_dir=runner.work_dir, epochs=runner.epoch,
                iterations=runner.iter)


def _load(config: PathLike, pairs: CfgOptions, launcher: str,
          work_dir: PathLike | None) -> 'Config':
    """Load a config; the work folder is named after it by default."""
    cfg = load_config(str(config), pairs)
    cfg.launcher = launcher
    folder = work_dir or cfg.get('work_dir') or (
        Path('work_dirs') / Path(config).stem)
    cfg.work_dir = os.path.expanduser(folder)
    return cfg


@command()
def test(config: ConfigName,
         checkpoint: Checkpoint,
         *,
         work_dir: OutputFolder | None = None,
         out: Annotated[PathLike, Output('.json')] | None = None,
         dump: Annotated[PathLike, Output('.pkl')] | None = None,
         cfg_options: CfgOptions = (),
         launcher: Launcher = 'none') -> dict[str, Any]:
    """Test a checkpoint with the evaluators of its config.

    Example::

        $ cmae test finetune/vit-b_pt300e_100e_in1k epoch_100.pth
        $ tools/dist_test.sh configs/finetune/vit-b_pt300e_100e_in1k.py \
epoch_100.pth 8

    Args:
        config: Config file, or the name of a packaged one, whose data are in
            the folder $DATA_ROOT.
        checkpoint: A checkpoint of the config's model.
        work_dir: Folder of logs. Defaults to work_dirs/<config>.
        out: JSON file for the metrics.
        dump: File for the raw predictions, .pkl.

    Returns:
        dict[str, Any]: The metrics.

    Raises:
        ConfigError: If the config has nothing to test, or an override is
            invalid.
    """
    import mmengine
    from mmengine.dist import is_main_process
    from mmengine.evaluator import DumpResults

    from ..engine import ResumableRunner
    from ..engine.device import adapt_to_device
    from ..files import atomic_path, write_file
    cfg = _load(config, cfg_options, launcher, work_dir)
    if cfg.get('test_dataloader') is None:
        raise ConfigError(
            f'{config} has no test_dataloader, like all pre-training configs; '
            'use the config of a fine-tuned model')
    cfg.load_from, cfg.resume = str(checkpoint), False
    adapt_to_device(cfg)
    runner = ResumableRunner.from_cfg(cfg)
    with ExitStack() as stack:
        if dump is not None:
            file = stack.enter_context(atomic_path(dump)) if (
                is_main_process()) else dump
            runner.test_evaluator.metrics.append(
                DumpResults(out_file_path=str(file)))
        metrics = runner.test()
    if out is not None and is_main_process():
        write_file(out, mmengine.dump(metrics, file_format='json'))
    return metrics


@command()
def batch_size(config: ConfigName,
               *,
               memory_limit: Positive | None = None,
               cfg_options: CfgOptions = ()) -> dict[str, Any]:
    """Find the largest batch that fits into the memory of a GPU.

    Runs training steps on random images. The config's batch size is doubled
    while it fits, or halved until it fits. A tenth of the memory is kept free.
    Training with several processes (DDP) needs additional memory for
    gradients.

    Example::

        $ cmae batch-size cmae_vit-b_300e
        $ cmae batch-size cmae_vit-b_300e --memory-limit 24

    Args:
        config: Config of a pre-training.
        memory_limit: Memory of a smaller GPU in GiB. Defaults to this GPU's.

    Returns:
        dict[str, Any]: ``largest``, 0 if not even two images fit, ``device``
        and ``limit_gib``.

    Raises:
        ConfigError: If it is not a pre-training config, or there is no GPU.
    """
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from ..engine.training_step import BatchTrial, largest_batch
    cfg = load_config(str(config), cfg_options)
    kind = name_of((cfg.get('model') or {}).get('type'))
    if kind != 'CMAE' or cfg.get('optim_wrapper') is None:
        raise ConfigError(
            'batch-size needs a pre-training config with a model of type '
            f"'CMAE' and an optim_wrapper, but {config} has a model of type "
            f'{kind!r}; for others, halve the batch until it fits')
    if not torch.cuda.is_available():
        raise ConfigError(
            'batch-size needs a CUDA GPU, but torch finds none; on a CPU, '
            'halve train_dataloader.batch_size until training fits')
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    memory = found.total_memory / 2**30
    if (memory_limit or 0) > memory:
        raise ConfigError(f'--memory-limit must be at most {memory:.1f}, the '
                          f'GiB of this GPU, but got {memory_limit:g}')
    limit = (memory_limit or memory) * (1 - _HEADROOM)
    # Leave out the lines on each initialised parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    print(f'{found.name}: at most {limit:.1f} GiB\n'
          f'{"batch":>7}{"GiB":>9}{"images/s":>11}', flush=True)
    trial = BatchTrial(cfg, limit)

    def fits(size: int) -> bool:
        fitting = trial.fits(size)
        print(f'{size:7d}{trial.peak:9.2f}{trial.rate:11.1f}' if fitting else
              f'{size:7d}   does not fit', flush=True)
        return fitting

    size = largest_batch(fits, cfg.train_dataloader.batch_size)
    print(f'--cfg-options train_dataloader.batch_size={size}' if size else
          'not even a batch of two images fits')
    return dict(config=str(config), device=found.name, limit_gib=limit,
                largest=size, exit_status=int(not size))
