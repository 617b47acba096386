"""Train and evaluate several configs with several seeds."""
import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ..apis.study_plan import CHECKPOINT, Step, Study, StudyRun, read_study
from ..config import ConfigError, quote_value
from ..dependencies import cpu_count
from ..files import check_output, output_lock, write_file
from .arguments import at_least
from .command import Command, Result, perform

# Seconds between two checks of the processes.
_INTERVAL = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('study', metavar='STUDY', help='YAML file')
    parser.add_argument(
        '--out', metavar='DIR',
        help='output folder of runs and results (default: '
        'work_dirs/<study>)')
    parser.add_argument(
        '--jobs', type=at_least(1), default=1, metavar='N',
        help='runs at the same time, which share the cores (default: 1)')
    parser.add_argument(
        '--gpus', type=at_least(0), nargs='+', default=[], metavar='N',
        help='GPUs, one for each of the runs at the same time')
    parser.add_argument(
        '--only', nargs='+', default=[], metavar='NAME',
        help='only these runs of the study')
    # One run in this process; started by the command itself.
    parser.add_argument('--run', nargs=2, help=argparse.SUPPRESS)


def check(args: argparse.Namespace) -> None:
    """Check the study and the steps that are already done.

    Raises:
        ConfigError: If the study is invalid, or a step was done with other
            settings.
        FileNotFoundError: If a file is missing.
    """
    study = read_study(args.study, _out(args))
    check_output(_out(args), is_folder=True)
    unknown = [name for name in args.only if name not in study.names]
    if unknown:
        raise ConfigError(f'--only: there is no run {unknown[0]!r} in '
                          f'{args.study}, but {", ".join(study.names)}')
    for run in study.runs:
        for step in run.steps:
            _check_same(step)


def _check_same(step: Step) -> None:
    before = step.read_done().get('command', step.command)
    if before != step.command:
        changed = sorted(set(before) ^ set(step.command))
        raise ConfigError(
            f'{step.done} was made with other settings ({", ".join(changed)})'
            f'; delete {step.done.parent} to run it again, or choose '
            'another name for the run or another --out')


def study(args: argparse.Namespace) -> Optional[Result]:
    """Run the steps that are not done; write the results."""
    from ..visualization.study_results import write_results
    out = _out(args)
    plan = read_study(args.study, out)
    if args.run is not None:
        name, seed = args.run
        make_run(next(run for run in plan.runs
                      if run.name == name and run.seed == int(seed)))
        return None
    chosen = [r for r in plan.runs if not args.only or r.name in args.only]
    with output_lock(out, is_folder=True):
        failed = start_all(args, plan, chosen)
        results = write_results(plan, out)
    print(results.table)
    print(f'also in {out}: results.csv, results.md, scores.png, curves.png')
    for run in failed:
        print(f'{run.label} failed ({_last_line(run)}); its output is in '
              f'{run.folder}/output.txt, and the same command tries again',
              file=sys.stderr)
    return dict(out=str(out), done=len(chosen) - len(failed),
                failed=[run.label for run in failed], rows=results.summary,
                exit_status=1 if failed else 0)


def start_all(args: argparse.Namespace, plan: Study,
              chosen: Sequence[StudyRun]) -> List[StudyRun]:
    """Start runs, ``--jobs`` or ``--gpus`` at a time, and wait for them.

    Returns:
        List[StudyRun]: The runs that failed.
    """
    from ..progress import Progress
    from ..visualization.study_results import write_results
    waiting = [run for run in chosen if not is_done(run)]
    places = list(args.gpus) or [None] * args.jobs
    threads = max(1, cpu_count() // len(places))
    running: Dict[int, Tuple[StudyRun, subprocess.Popen]] = {}
    failed: List[StudyRun] = []
    # Runs without training take hardly any time.
    counted = {run.label for run in chosen if trains(run)} or {
        run.label for run in chosen}
    left = sum(run.label in counted for run in waiting)
    with Progress(len(counted), plan.title, 'run',
                  initial=len(counted) - left) as progress, \
            _terminating(running):
        while waiting or running:
            for place, gpu in enumerate(places):
                if waiting and place not in running:
                    run = waiting.pop(0)
                    print(f'{run.label}: started, see {run.folder}',
                          flush=True)
                    running[place] = run, _start(args, run, gpu, threads)
            time.sleep(_INTERVAL)
            for place, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[place]
                if process.returncode or not is_done(run):
                    failed.append(run)
                progress.update(int(run.label in counted))
                write_results(plan, _out(args))
    return failed


@contextmanager
def _terminating(running: Dict[int, Tuple[StudyRun, subprocess.Popen]]
                 ) -> Iterator[None]:
    """Terminate the processes that still run; they save before they end."""
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # nohup ignores SIGHUP, which stays so.
    before = {s: signal.signal(s, stop)
              for s in (signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _start(args: argparse.Namespace, run: StudyRun, gpu: Optional[int],
           threads: int) -> subprocess.Popen:
    environment = dict(os.environ)
    environment.setdefault('OMP_NUM_THREADS', str(threads))
    if gpu is not None:
        environment['CUDA_VISIBLE_DEVICES'] = str(gpu)
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'cmae_mm', 'study', args.study, '--out',
               str(_out(args)), '--run', run.name, str(run.seed)]
    with open(run.folder / 'output.txt', 'a') as output:
        # In its own session: Ctrl-C only reaches it through this process.
        return subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True)


def is_done(run: StudyRun) -> bool:
    """Return whether all steps of a run are done."""
    return all(step.done.is_file() for step in run.steps)


def trains(run: StudyRun) -> bool:
    """Return whether a run pre-trains or fine-tunes."""
    return any(step.command[0] == 'train' for step in run.steps)


def make_run(run: StudyRun) -> None:
    """Run the steps of a run that are not done, in this process."""
    from .main import parse
    for step in run.steps:
        if step.done.is_file():
            continue
        words = list(_filled_in(step.command, run))
        begun = time.time()
        result = perform(parse(words))
        if result.pop('exit_status', 0):
            sys.exit(1)
        done = dict(command=step.command, result=result,
                    seconds=time.time() - begun)
        write_file(step.done, json.dumps(done, default=str) + '\n')


def _filled_in(command: Sequence[str], run: StudyRun) -> Iterator[str]:
    """Replace the placeholder of the trained checkpoint."""
    from ..engine.checkpoint_folder import find_newest_whole, list_checkpoints
    for word in command:
        if CHECKPOINT in word:
            folder = run.folder / 'train'
            last = find_newest_whole(list_checkpoints(str(folder)))
            if last is None:
                raise FileNotFoundError(f'{folder} holds no checkpoint')
            value = str(last) if word == CHECKPOINT else quote_value(str(last))
            word = word.replace(CHECKPOINT, value)
        yield word


def _last_line(run: StudyRun) -> str:
    lines = (run.folder / 'output.txt').read_text(
        'utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else 'without output'


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or Path('work_dirs') / Path(args.study).stem)


COMMANDS = [
    Command(
        name='study',
        help='compare configs over several seeds',
        description='Trains and evaluates each run of STUDY once for each '
        'seed, and writes a table with mean and standard deviation, a CSV '
        'file and plots. After an interruption the same command continues. '
        'docs/study.md describes STUDY.',
        example='cmae study studies/cifar10.yaml\n'
        'cmae study studies/cifar10.yaml --gpus 0 1 2 3',
        add_arguments=add_arguments,
        check=check,
        registers=False,
        stopped=lambda args: f'finished runs are in {_out(args)}, and the '
        'same command goes on',
        run=study),
]
