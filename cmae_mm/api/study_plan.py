"""What a study trains and evaluates, read from its YAML file."""
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..config import ConfigError
from ..packaged import find_config

# Evaluations of a frozen encoder: commands that take CONFIG CHECKPOINT.
EVALUATIONS = ('knn', 'linear', 'low-shot', 'dense-knn', 'dense-linear')
RANDOM = 'random'
# In a command, where the checkpoint that was trained is to stand.
CHECKPOINT = '{checkpoint}'
_STUDY = ('title', 'config', 'options', 'seeds', 'evaluate', 'transfer',
          'runs')
_RUN = ('config', 'options', 'checkpoint')
_TRANSFER = ('config', 'options')


class Step(NamedTuple):
    """One command of a run.

    Args:
        name (str): 'train', or the name of what is measured.
        command (List[str]): What follows ``cmae``; :data:`CHECKPOINT` stands
            for the file that the training has left.
        folder (Path): Where the command writes.
    """

    name: str
    command: List[str]
    folder: Path

    @property
    def done(self) -> Path:
        """Give the file that says that it is done, and the result."""
        return self.folder.with_name(f'{self.folder.name}.json')


class StudyRun(NamedTuple):
    """One training of a study, with its evaluations.

    Args:
        name (str): The run's name in the file, a row of the table.
        seed (int): Its seed.
        checkpoint (str): What is evaluated: '' for what is trained, or a file,
            or 'random'.
        steps (List[Step]): What is done, in this order.
        folder (Path): Where all of it is.
    """

    name: str
    seed: int
    checkpoint: str
    steps: List[Step]
    folder: Path

    @property
    def label(self) -> str:
        """Give a name for messages."""
        return f'{self.name}, seed {self.seed}'


class Study(NamedTuple):
    """A study.

    Args:
        title (str): What is compared.
        names (List[str]): Names of the rows, in the file's order.
        runs (List[StudyRun]): Each row once for each seed; all rows of a seed
            before the next seed, so that an interrupted study compares.
    """

    title: str
    names: List[str]
    runs: List[StudyRun]


def read_study(path: str, out: Path) -> Study:
    """Read and check a study.

    Args:
        path (str): The YAML file; docs/study.md says what it holds.
        out (Path): Folder of the runs.

    Returns:
        Study: What is to be done.

    Raises:
        ConfigError: If the file cannot be meant so.
        FileNotFoundError: If the file, or a config that it names, is not
            there.
    """
    # Not above: `cmae doctor` answers where no library is installed.
    import yaml
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no study {path}')
    try:
        content = yaml.safe_load(Path(path).read_text('utf-8'))
    except yaml.YAMLError as error:
        raise ConfigError(f'{path} is no YAML: {error}') from error
    _check_keys(path, content, _STUDY)
    _check_mapping(path, content, 'runs')
    if not content['runs']:
        raise ConfigError(f'{path}: runs is empty; name at least one')
    _check_folders(path, content['runs'])
    names = list(content['runs'])
    seeds = _read_seeds(path, content)
    runs = [_plan(path, content, name, seed, out)
            for seed in seeds for name in names]
    return Study(str(content.get('title') or Path(path).stem), names, runs)


def folder_name(name: str) -> str:
    """Make a folder's name of a run's: 'MAE, 75 %' becomes 'mae_75'."""
    return re.sub(r'[^a-z0-9.]+', '_', name.lower()).strip('_.') or 'run'


def _plan(path: str, content: Mapping[str, Any], name: str, seed: int,
          out: Path) -> StudyRun:
    """Write down the commands of one run."""
    where = f'{path}: runs.{name}'
    run = content['runs'][name] or {}
    _check_keys(where, run, _RUN)
    config = run.get('config', content.get('config'))
    if config is None:
        raise ConfigError(f'{where} has no config, and the study neither; '
                          'name one')
    find_config(config)
    options = _pairs(where, {**_mapping(path, content, 'options'),
                             **_mapping(where, run, 'options')}, seed)
    checkpoint = str(run.get('checkpoint', ''))
    folder = out / folder_name(name) / f'seed{seed}'
    steps: List[Step] = []
    if not checkpoint:
        steps.append(Step('train', [
            'train', config, '--resume', '--work-dir', str(folder / 'train'),
            '--cfg-options', *options], folder / 'train'))
    for kind, more in _evaluations(path, content).items():
        steps.append(Step(kind, [
            kind, config, checkpoint or CHECKPOINT, '--work-dir',
            str(folder / kind), *more, '--cfg-options', *options],
            folder / kind))
    for kind, command in _transfers(path, content, seed).items():
        start = checkpoint or CHECKPOINT
        steps.append(Step(kind, [
            'train', command[0], '--resume', '--work-dir', str(folder / kind),
            '--cfg-options',
            f'model.backbone.init_cfg.checkpoint={start}', *command[1:]],
            folder / kind))
    return StudyRun(name, seed, checkpoint, steps, folder)


def _evaluations(path: str, content: Mapping[str, Any]
                 ) -> Dict[str, List[str]]:
    """Read what is evaluated: a list of commands, or commands' arguments."""
    given = content.get('evaluate', ['knn'])
    if isinstance(given, list):
        given = {name: [] for name in given}
    if not isinstance(given, dict) or set(given) - set(EVALUATIONS):
        raise ConfigError(
            f'{path}: evaluate must be a list of {", ".join(EVALUATIONS)}, or '
            f'a mapping from these to arguments, but got {given!r}')
    return {name: [str(word) for word in more or []]
            for name, more in given.items()}


def _transfers(path: str, content: Mapping[str, Any], seed: int
               ) -> Dict[str, List[str]]:
    """Read what is fine-tuned: the config and its options, by name."""
    found: Dict[str, List[str]] = {}
    for name, value in _mapping(path, content, 'transfer').items():
        where = f'{path}: transfer.{name}'
        if name in ('train', *EVALUATIONS):
            raise ConfigError(f'{where}: choose another name; this one is a '
                              "step's")
        _check_keys(where, value, _TRANSFER)
        if 'config' not in value:
            raise ConfigError(f'{where} has no config; name one')
        find_config(value['config'])
        found[folder_name(name)] = [
            value['config'],
            *_pairs(where, _mapping(where, value, 'options'), seed)]
    return found


def _pairs(where: str, options: Mapping[str, Any], seed: int) -> List[str]:
    """Write options as ``--cfg-options`` takes them."""
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


def _read_seeds(path: str, content: Mapping[str, Any]) -> List[int]:
    seeds = content.get('seeds', [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or any(
            type(s) is not int or s < 0 for s in seeds) or len(
                set(seeds)) < len(seeds):
        raise ConfigError(f'{path}: seeds must be a list of different whole '
                          f'numbers of 0 or more, but got {seeds!r}')
    return seeds


def _check_folders(path: str, names: Mapping[str, Any]) -> None:
    folders: Dict[str, str] = {}
    for name in names:
        other = folders.setdefault(folder_name(str(name)), str(name))
        if other != str(name):
            raise ConfigError(f'{path}: the runs {other!r} and {name!r} would '
                              'share a folder; choose names that differ in '
                              'letters or digits')


def _mapping(where: str, content: Mapping[str, Any], key: str
             ) -> Dict[str, Any]:
    if content.get(key) is None:
        return {}
    _check_mapping(where, content, key)
    return dict(content[key])


def _check_mapping(where: str, content: Mapping[str, Any], key: str) -> None:
    if not isinstance(content.get(key), dict):
        raise ConfigError(f'{where}: {key} must be a mapping, but got '
                          f'{content.get(key)!r}')


def _check_keys(where: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise ConfigError(f'{where} must be a mapping with some of '
                          f'{", ".join(known)}, but got {content!r}')
    unknown: Tuple[str, ...] = tuple(
        str(key) for key in content if key not in known)
    if unknown:
        raise ConfigError(f'{where} has {", ".join(unknown)}, but takes only '
                          f'{", ".join(known)}')
