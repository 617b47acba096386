"""The runs and steps of a study, read from its YAML file."""
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from ..config import ConfigError, quote_value
from ..packaged import find_config

# Evaluations of a frozen encoder: commands that take CONFIG CHECKPOINT.
EVALUATIONS = ('knn', 'linear', 'low-shot', 'dense-knn', 'dense-linear')
RANDOM = 'random'
# Placeholder in a command for the trained checkpoint.
CHECKPOINT = '{checkpoint}'
_STUDY = ('title', 'config', 'options', 'seeds', 'evaluate', 'transfer',
          'runs')
_RUN = ('config', 'options', 'checkpoint')
_TRANSFER = ('config', 'options')


class Step(NamedTuple):
    """One command of a run.

    Args:
        name (str): 'train', or the name of an evaluation or transfer.
        command (List[str]): The words after ``cmae``; :data:`CHECKPOINT` is a
            placeholder for the trained checkpoint.
        folder (Path): The command's output folder.
    """

    name: str
    command: List[str]
    folder: Path

    @property
    def done(self) -> Path:
        """The file that is written when the step is done."""
        return self.folder.with_name(f'{self.folder.name}.json')

    def read_done(self) -> Dict[str, Any]:
        """Read the command, result and seconds of a finished step.

        Returns:
            Dict[str, Any]: Empty if the step is not done.

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
        steps (List[Step]): Its commands, in order.
        folder (Path): Its output folder.
    """

    name: str
    seed: int
    steps: List[Step]
    folder: Path

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return f'{self.name}, seed {self.seed}'


class Study(NamedTuple):
    """A study.

    Args:
        title (str): The heading of its table.
        names (List[str]): The rows, in the file's order.
        runs (List[StudyRun]): Each row once for each seed. All rows of a seed
            precede the next seed, so that an interrupted study has complete
            comparisons.
    """

    title: str
    names: List[str]
    runs: List[StudyRun]


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
    content = _load_yaml(path)
    _check_keys(path, content, _STUDY)
    _check_mapping(path, content, 'runs')
    if not content['runs']:
        raise ConfigError(f'{path}: runs is empty; name at least one')
    runs = {str(name): run for name, run in content['runs'].items()}
    _check_folders(path, runs)
    seeds = _read_seeds(path, content)
    planned = [_plan(path, content, name, runs[name] or {}, seed, out)
               for seed in seeds for name in runs]
    return Study(str(content.get('title') or Path(path).stem), list(runs),
                 planned)


def _load_yaml(path: str) -> Any:
    """Load YAML in which no key is repeated."""
    # Not above: `cmae doctor` also works without any library.
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
        raise FileNotFoundError(f'there is no study {path}')
    try:
        return yaml.load(Path(path).read_text('utf-8'), Loader)
    except RecursionError:
        raise ConfigError(f'{path} is nested too deeply') from None
    except (yaml.YAMLError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'{path} is not valid YAML: {reason}') from None


def folder_name(name: str) -> str:
    """Make a folder's name from a run's: 'MAE, 75 %' becomes 'mae_75'."""
    return re.sub(r'[^a-z0-9.]+', '_', name.lower()).strip('_.') or 'run'


def _plan(path: str, content: Mapping[str, Any], name: str, run: Any,
          seed: int, out: Path) -> StudyRun:
    """List the commands of one run."""
    where = f'{path}: runs.{name}'
    _check_keys(where, run, _RUN)
    checkpoint = str(run.get('checkpoint') or '')
    evaluations = _evaluations(path, content)
    config = run.get('config', content.get('config'))
    if config is not None or evaluations or not checkpoint:
        _check_config(where, config)
    options = _pairs(where, {**_mapping(path, content, 'options'),
                             **_mapping(where, run, 'options')}, seed)
    folder = out / folder_name(name) / f'seed{seed}'
    steps: List[Step] = []
    if not checkpoint:
        steps.append(Step('train', [
            'train', config, '--resume', '--work-dir', str(folder / 'train'),
            '--cfg-options', *options], folder / 'train'))
    for kind, more in evaluations.items():
        steps.append(Step(kind, [
            kind, config, checkpoint or CHECKPOINT, '--work-dir',
            str(folder / kind), *more, '--cfg-options', *options],
            folder / kind))
    start = ('model.backbone.init_cfg.checkpoint='
             f'{quote_value(checkpoint) if checkpoint else CHECKPOINT}')
    for kind, command in _transfers(path, content, seed).items():
        steps.append(Step(kind, [
            'train', command[0], '--resume', '--work-dir', str(folder / kind),
            '--cfg-options', start, *command[1:]], folder / kind))
    if not steps:
        raise ConfigError(f'{path} has nothing to do: evaluate and transfer '
                          'are empty')
    return StudyRun(name, seed, steps, folder)


def _evaluations(path: str, content: Mapping[str, Any]
                 ) -> Dict[str, List[str]]:
    """Read the evaluations: a list of commands, or commands' arguments."""
    given = content.get('evaluate', ['knn'])
    named = {name: [] for name in given if isinstance(name, str)} if (
        isinstance(given, list)) else given
    if (not isinstance(named, dict) or len(named) < len(given)
            or set(named) - set(EVALUATIONS)
            or not all(isinstance(more, (list, type(None)))
                       for more in named.values())):
        raise ConfigError(
            f'{path}: evaluate must be a list of {", ".join(EVALUATIONS)}, or '
            f'a mapping from these to lists of arguments, but got {given!r}')
    return {name: [str(word) for word in more or []]
            for name, more in named.items()}


def _transfers(path: str, content: Mapping[str, Any], seed: int
               ) -> Dict[str, List[str]]:
    """Read the fine-tunings: a config and its options by name."""
    found: Dict[str, List[str]] = {}
    for name, value in _mapping(path, content, 'transfer').items():
        where = f'{path}: transfer.{name}'
        kind = folder_name(str(name))
        if kind in ('train', *EVALUATIONS, *found):
            raise ConfigError(f'{where}: choose another name; another step '
                              f'has the folder {kind}')
        _check_keys(where, value, _TRANSFER)
        _check_config(where, value.get('config'))
        found[kind] = [
            value['config'],
            *_pairs(where, _mapping(where, value, 'options'), seed)]
    return found


def _check_config(where: str, config: Any) -> None:
    if config is None:
        raise ConfigError(f'{where} has no config; name one')
    if not isinstance(config, str):
        raise ConfigError(f'{where}: config must be the name of a config, but '
                          f'got {config!r}')
    find_config(config)


def _pairs(where: str, options: Mapping[str, Any], seed: int) -> List[str]:
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
        other = folders.setdefault(folder_name(name), name)
        if other != name:
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
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ConfigError(f'{where} has {", ".join(unknown)}, but takes only '
                          f'{", ".join(known)}')
