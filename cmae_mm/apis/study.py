"""Studies: train and evaluate several configs with several seeds."""
import json
import os
import platform
import re
import reprlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

from ..config import ConfigError, load_config
from ..dependencies import cpu_count, find_config
from ..files import append_line, output_lock, write_file
from ..plain_config import format_config
from ..progress import Progress
from ..version import __version__
from .arguments import (RANDOM, Count, OutputFolder, PathLike, Size, command,
                        interruptible)

# Evaluations of a frozen encoder.
EVALUATIONS = ('knn', 'linear', 'low-shot', 'frozen', 'dense-knn',
               'dense-linear')
# Placeholder in a command for the trained checkpoint.
CHECKPOINT = '{checkpoint}'
# Placeholder in a command for the data folder of the config.
DATA = '{data}'
# Placeholder in a command for a file of the config with the run's options.
MODEL = '{model}'
# Seconds between two checks of the processes.
_INTERVAL = 0.2
# Keys of the YAML file and their types.
_TRANSFER = dict(config=str, options=dict)
_RUN = dict(_TRANSFER, checkpoint=str)
_STUDY = dict(title=object, **_TRANSFER, seeds=list, evaluate=(list, dict),
              transfer=dict, finetune=dict, runs=dict)
_TYPES = {str: 'text', dict: 'a mapping', list: 'a list',
          (list, dict): 'a list or a mapping'}


class Step(NamedTuple):
    """One command of a run.

    Args:
        name (str): 'train', or the name of an evaluation or fine-tuning.
        command (list[str]): The words after ``cmae``, with the placeholders
            :data:`CHECKPOINT`, :data:`DATA` and :data:`MODEL`.
        folder (Path): The command's output folder.
        settings (list[str]): What placeholders depend on, unless the command
            has it.
    """

    name: str
    command: list[str]
    folder: Path
    settings: list[str] = []

    @property
    def done(self) -> Path:
        """The file that is written when the step is done."""
        return self.folder.with_name(f'{self.folder.name}.json')

    @property
    def words(self) -> list[str]:
        """The command and its settings, for comparison."""
        return [*self.command, *self.settings]

    def read_done(self) -> dict[str, Any]:
        """Read the command and the result of a finished step.

        Returns:
            dict[str, Any]: Empty if the step is not done.

        Raises:
            ConfigError: If the file is damaged.
        """
        if not self.done.is_file():
            return {}
        try:
            content = json.loads(self.done.read_text('utf-8'))
            dict(content['result']), list(content['command'])
            return content
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f'{self.done} is damaged ({error}); delete it to run this '
                'step again') from None


class StudyRun(NamedTuple):
    """One training of a study, with its evaluations.

    Args:
        name (str): The run's name in the file, a row of the table.
        seed (int): Its seed.
        steps (list[Step]): Its commands, in order.
        folder (Path): Its output folder.
        config (str, optional): Config of the pre-training.
        options (list[str]): Overrides of the config.
    """

    name: str
    seed: int
    steps: list[Step]
    folder: Path
    config: str | None = None
    options: list[str] = []

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return f'{self.name}, seed {self.seed}'

    @property
    def output(self) -> Path:
        """The file with the output of all commands."""
        return self.folder / 'output.txt'

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return all(step.done.is_file() for step in self.steps)


class Study(NamedTuple):
    """A study.

    Args:
        title (str): The heading of its table.
        names (list[str]): The rows, in the file's order.
        runs (list[StudyRun]): Each row once for each seed. All rows of a seed
            precede the next seed, so that an interrupted study has complete
            comparisons.
    """

    title: str
    names: list[str]
    runs: list[StudyRun]


class StudyResult(NamedTuple):
    """Results of a study.

    Args:
        out (Path): The output folder.
        done (int): Number of finished runs.
        failed (list[str]): The failed runs.
        rows (dict): Mean, standard deviation and number of seeds of each
            measure of each row.
    """

    out: Path
    done: int
    failed: list[str]
    rows: dict[str, dict[str, tuple[float, float, int]]]

    def as_json(self) -> dict[str, Any]:
        """Return what ``cmae study --json`` prints, and the exit status."""
        return dict(self._asdict(), exit_status=1 if self.failed else 0)


def _output_folder(study: PathLike, out: PathLike | None) -> Path:
    """Return the output folder, by default named after the study."""
    return Path(out or Path('work_dirs') / Path(study).stem)


def _check_study(study: PathLike, out: PathLike | None,
                 only: Sequence[str], **others: Any) -> None:
    """Check the study and the steps that are done."""
    plan = read_study(str(study), _output_folder(study, out))
    unknown = [name for name in only if name not in plan.names]
    if unknown:
        raise ConfigError(f'only: {study} has no run {unknown[0]!r}; it has '
                          f'{", ".join(plan.names)}')
    for run in plan.runs:
        for step in run.steps:
            before = step.read_done().get('command', step.words)
            changed = sorted(set(before) ^ set(step.words))
            if before != step.words:
                raise ConfigError(
                    f'{step.done} has results of other settings '
                    f'({", ".join(changed)}); delete {run.folder} to run it '
                    'again, or choose another name of the run or --out')


@command(check=_check_study, libraries='framework')
def study(study: PathLike,
          *,
          out: OutputFolder | None = None,
          jobs: Size = 1,
          gpus: Sequence[Count] = (),
          only: Sequence[str] = ()) -> StudyResult:
    """Compare configs over several seeds.

    Each run of STUDY is trained and evaluated once for each seed. Writes a
    table with mean and standard deviation, a CSV file and a plot. If
    interrupted, the same command continues. docs/study.md describes STUDY.

    Example::

        $ cmae study studies/cifar10.yaml
        $ cmae study studies/cifar10.yaml --gpus 0 1 2 3

    Args:
        study: YAML file.
        out: Output folder of runs and results. Defaults to work_dirs/<study>.
        jobs: Number of parallel runs, which share the CPU cores. Defaults to
            1.
        gpus: Indices of GPUs, one for each parallel run.
        only: Names of the runs to train. Defaults to all.

    Returns:
        StudyResult: The results of all finished runs.

    Raises:
        ConfigError: If the study is invalid, or a step was made with other
            settings.
        FileNotFoundError: If the study or a config does not exist.
    """
    from ..visualization.study_results import write_results
    folder = _output_folder(study, out)
    plan = read_study(str(study), folder)
    chosen = [run for run in plan.runs if not only or run.name in only]
    with output_lock(folder, is_folder=True), interruptible(
            f'finished runs are in {folder}; the same command continues'):
        failed = _run_all(plan, chosen, list(gpus) or [None] * jobs, folder)
        results = write_results(plan, folder)
    print(results.table)
    print(f'Wrote results.csv, results.md and scores.png to {folder}')
    for run in failed:
        print(f'{run.label} failed ({_last_line(run.output)}); see '
              f'{run.output}; the same command runs it again',
              file=sys.stderr)
    return StudyResult(folder, len(chosen) - len(failed),
                       [run.label for run in failed], results.summary)


def _run_all(plan: Study, chosen: Sequence[StudyRun],
             places: Sequence[int | None], out: Path) -> list[StudyRun]:
    """Run several runs in parallel, one per slot; return the failed ones."""
    from ..visualization.study_results import write_results
    waiting = [run for run in chosen if not run.is_done]
    threads = max(1, cpu_count() // len(places))
    failed: list[StudyRun] = []
    # By slot: a run, its next processes, and the current one.
    active: dict[int, tuple[StudyRun, Iterator, subprocess.Popen | None]]
    active = {}
    with Progress(len(chosen), plan.title, 'run',
                  initial=len(chosen) - len(waiting)) as progress, \
            _terminating(active):
        while waiting or active:
            for place, gpu in enumerate(places):
                if waiting and place not in active:
                    run = waiting.pop(0)
                    print(f'{run.label}: started in {run.folder}',
                          flush=True)
                    active[place] = run, _run_steps(run, gpu, threads), None
            time.sleep(_INTERVAL)
            for place, (run, processes, process) in list(active.items()):
                if process is not None and process.poll() is None:
                    continue
                following = next(processes, None)
                if following is not None:
                    active[place] = run, processes, following
                    continue
                del active[place]
                if not run.is_done:
                    failed.append(run)
                progress.update()
                write_results(plan, out)
    return failed


def _run_steps(run: StudyRun, gpu: int | None, threads: int
               ) -> Iterator[subprocess.Popen]:
    """Yield a process for each step that is not done, until one fails.

    The caller resumes the generator when the process has ended.
    """
    environment = dict(os.environ)
    environment.setdefault('OMP_NUM_THREADS', str(threads))
    if gpu is not None:
        environment['CUDA_VISIBLE_DEVICES'] = str(gpu)
    run.folder.mkdir(parents=True, exist_ok=True)
    for step in run.steps:
        if step.done.is_file():
            continue
        try:
            words = _fill_in(step.command, run)
        except (OSError, ValueError) as error:  # only this run fails
            append_line(run.output, str(error))
            return
        with open(run.output, 'a') as output:
            # In its own session: Ctrl-C only reaches it through this process.
            process = subprocess.Popen(
                [sys.executable, '-m', 'cmae_mm', *words, '--json'],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env=environment, start_new_session=True)
        yield process
        if process.returncode:
            return
        lines = run.output.read_text('utf-8', 'replace').splitlines()
        result = next(line for line in lines[::-1] if line.startswith('{'))
        write_file(step.done, json.dumps(dict(
            command=step.words, result=json.loads(result),
            made=_origin())) + '\n')


def _origin() -> dict[str, str]:
    """Return time, machine and code version of a step."""
    git = subprocess.run(
        ['git', '-C', str(Path(__file__).parent), 'rev-parse', '--short',
         'HEAD'], capture_output=True, text=True) if which('git') else None
    commit = git.stdout.strip() if git and not git.returncode else __version__
    return dict(date=time.strftime('%Y-%m-%d %H:%M'), commit=commit,
                machine=f'{cpu_count()} cores, {platform.machine()}')


def _fill_in(command: Sequence[str], run: StudyRun) -> list[str]:
    """Replace the placeholders of data, model and trained checkpoint."""
    from ..engine.resuming import find_newest_complete, list_checkpoints
    values = {}
    if DATA in command or MODEL in command:
        assert run.config is not None
        cfg = load_config(run.config, run.options)
        values[DATA] = cfg.train_dataloader.dataset.data_root
        if MODEL in command:
            values[MODEL] = str(run.folder / 'model.py')
            write_file(values[MODEL], format_config(cfg.to_dict()))
    if any(CHECKPOINT in word for word in command):
        folder = run.folder / 'train'
        last = find_newest_complete(list_checkpoints(str(folder)))
        if last is None:
            raise FileNotFoundError(f'{folder} has no checkpoint')
        values[CHECKPOINT] = str(last)
    # A part of a word is a value of an option.
    return [values.get(word, word.replace(
        CHECKPOINT, repr(values.get(CHECKPOINT)))) for word in command]


@contextmanager
def _terminating(active: Mapping[int, tuple]) -> Iterator[None]:
    """Terminate the processes that still run; they save before they end."""
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # nohup ignores SIGHUP; keep that.
    before = {s: signal.signal(s, stop)
              for s in (signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        processes = [process for *_, process in active.values() if process]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text('utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else 'without output'


def read_study(path: str, out: Path) -> Study:
    """Read and check a study.

    Args:
        path (str): The YAML file, see docs/study.md.
        out (Path): The output folder of all runs.

    Returns:
        Study: The runs and their steps.

    Raises:
        ConfigError: If the file is not a valid study.
        FileNotFoundError: If the file or one of its configs does not exist.
    """
    content = _check(path, _load_yaml(path), _STUDY)
    runs = content.get('runs')
    if not runs:
        raise ConfigError(f'{path}: runs is empty; add at least one')
    folders: dict[str, Any] = {}
    for name in runs:
        other = folders.setdefault(folder_name(name), name)
        if other is not name:
            raise ConfigError(f'{path}: the runs {other!r} and {name!r} have '
                              'the same folder name; choose names that differ '
                              'in letters or digits')
    seeds = content.get('seeds', [0, 1, 2])
    if not seeds or len({seed for seed in seeds if type(seed) is int
                         and seed >= 0}) < len(seeds):
        raise ConfigError(f'{path}: seeds must be a list of different whole '
                          f'numbers of 0 or more, but got {seeds!r}')
    planned = [_plan(path, content, name, seed, out)
               for seed in seeds for name in runs]
    return Study(str(content.get('title', Path(path).stem)),
                 [str(name) for name in runs], planned)


def _load_yaml(path: str) -> Any:
    """Load YAML and reject repeated keys."""
    # Not at the top: `cmae doctor` works without any library.
    import yaml

    class Loader(yaml.SafeLoader):

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value
                    if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if key != '<<' and keys.count(key) > 1:
                    raise ConfigError(f'{path} has two entries {key!r} in one '
                                      'mapping; rename one')
            return super().construct_mapping(node, deep)

    if not Path(path).is_file():
        raise FileNotFoundError(f'the study {path} does not exist')
    try:
        return yaml.load(Path(path).read_text('utf-8'), Loader)
    except RecursionError:
        raise ConfigError(f'{path} is nested too deeply') from None
    except (yaml.YAMLError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'{path} is not valid YAML: {reason}') from None


def _check(where: str, content: Any, known: Mapping[str, Any]
           ) -> dict[str, Any]:
    """Check the keys and types of a mapping; drop empty entries."""
    if not isinstance(content, dict):
        raise ConfigError(f'{where} must be a mapping with some of '
                          f'{", ".join(known)}, but got '
                          f'{reprlib.repr(content)}')
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ConfigError(f'{where} has {", ".join(unknown)}, but the allowed '
                          f'keys are {", ".join(known)}')
    given = {k: value for k, value in content.items() if value is not None}
    for key, value in given.items():
        if not isinstance(value, known[key]):
            raise ConfigError(f'{where}: {key} must be {_TYPES[known[key]]}, '
                              f'but got {reprlib.repr(value)}')
    return given


def folder_name(name: object) -> str:
    """Convert a run's name to a folder name: 'MAE, 75 %' to 'mae_75'."""
    return re.sub(r'[^a-z0-9.]+', '_', str(name).lower()).strip('_.') or 'run'


def _plan(path: str, content: Mapping[str, Any], name: Any, seed: int,
          out: Path) -> StudyRun:
    """List the commands of one run."""
    where = f'{path}: runs.{name}'
    run = content['runs'][name]
    run = _check(where, {} if run is None else run, _RUN)
    checkpoint = run.get('checkpoint', '')
    evaluations = _evaluations(path, content.get('evaluate', ['knn']))
    config: Any = run.get('config', content.get('config'))
    labelled = _finetunings(path, content)
    if config or evaluations or labelled or not checkpoint:
        _check_config(where, config)
    options = _pairs(where, {**content.get('options', {}),
                             **run.get('options', {})}, seed)
    folder = out / folder_name(name) / f'seed{seed}'
    steps: list[Step] = []

    def add(kind: str, words: list[str], options: list[str]) -> None:
        steps.append(Step(kind, [
            *words, '--work-dir', str(folder / kind), '--cfg-options',
            *options], folder / kind))

    if not checkpoint:
        add('train', ['train', config, '--resume'], options)
    for kind, more in evaluations.items():
        data, *more = _with_data(more)
        add(kind, [kind, data, checkpoint or CHECKPOINT, '--config', config,
                   *more], options)
    for kind, more in labelled.items():
        data, *more = _with_data(more)
        more += ['--model', MODEL] if checkpoint == RANDOM else []
        target = folder / folder_name(kind)
        steps.append(Step(kind, [
            'finetune', data, checkpoint or CHECKPOINT, '--out', str(target),
            '--seed', str(seed), *more], target, [config, *options]))
    start = ('model.backbone.init_cfg.checkpoint='
             f'{repr(checkpoint) if checkpoint else CHECKPOINT}')
    for kind, (tuning, *more) in _transfers(path, content, seed).items():
        add(kind, ['train', tuning, '--resume'], [start, *more])
    if not steps:
        raise ConfigError(f'{path} has no steps: evaluate, finetune and '
                          'transfer are empty')
    return StudyRun(str(name), seed, steps, folder, config, options)


def _evaluations(path: str, given: Any) -> dict[str, list[str]]:
    """Read the evaluations: a list of commands, or commands' arguments."""
    named = given if isinstance(given, dict) else {
        str(name): None for name in given}
    if len(named) < len(given) or set(named) - set(EVALUATIONS) or not all(
            isinstance(more, (list, type(None))) for more in named.values()):
        raise ConfigError(
            f'{path}: evaluate must be a list of {", ".join(EVALUATIONS)}, or '
            'a mapping from these to lists of arguments, but got '
            f'{reprlib.repr(given)}')
    return {name: [str(word) for word in more or []]
            for name, more in named.items()}


def _with_data(words: list[str]) -> list[str]:
    """Begin with the data folder of the config, unless there is another."""
    has_data = words and not words[0].startswith('-')
    return words if has_data else [DATA, *words]


def _finetunings(path: str, content: Mapping[str, Any]
                 ) -> dict[str, list[str]]:
    """Read the arguments of ``cmae finetune`` by name."""
    found: dict[str, list[str]] = {}
    for name, value in content.get('finetune', {}).items():
        where = f'{path}: finetune.{name}'
        _check_name(where, name, found)
        if not isinstance(value, (list, type(None))):
            raise ConfigError(f'{where} must be a list of arguments of `cmae '
                              f'finetune`, but got {reprlib.repr(value)}')
        found[str(name)] = [str(word) for word in value or []]
    return found


def _check_name(where: str, name: object, others: Iterable[str]) -> None:
    """Check that no other step has the same folder."""
    folder = folder_name(name)
    if folder in ('train', *EVALUATIONS, *map(folder_name, others)):
        raise ConfigError(f'{where}: choose another name; another step '
                          f'has the folder {folder}')


def _transfers(path: str, content: Mapping[str, Any], seed: int
               ) -> dict[str, list[str]]:
    """Read the trainings that start from an encoder, by name."""
    found: dict[str, list[str]] = {}
    for name, value in content.get('transfer', {}).items():
        where = f'{path}: transfer.{name}'
        _check_name(where, name, [*found, *content.get('finetune', {})])
        value = _check(where, value, _TRANSFER)
        _check_config(where, value.get('config'))
        found[folder_name(name)] = [
            value['config'], *_pairs(where, value.get('options', {}), seed)]
    return found


def _check_config(where: str, config: str | None) -> None:
    if not config:
        raise ConfigError(f'{where} has no config; add one')
    find_config(config)


def _pairs(where: str, options: Mapping[str, Any], seed: int) -> list[str]:
    """Write options in the form of ``--cfg-options``."""
    pairs = []
    for key, value in options.items():
        if isinstance(value, dict):
            raise ConfigError(f'{where}: options.{key} is a mapping; write '
                              f'its keys with dots: {key}.KEY: VALUE')
        if key == 'randomness.seed':
            raise ConfigError(f'{where}: seeds, not randomness.seed, sets the '
                              'seeds of a study')
        text = value if isinstance(value, str) else ''.join(
            repr(value).split())
        pairs.append(f'{key}={text}')
    return [*pairs, f'randomness.seed={seed}']
