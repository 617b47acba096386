"""Train and evaluate several configs with several seeds."""
import argparse
import sys

from ..apis.study import check_study, output_folder
from .arguments import at_least
from .command import Command, Result


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


def check(args: argparse.Namespace) -> None:
    """Check the study and the steps that are already done."""
    check_study(args.study, output_folder(args.study, args.out), args.only)


def study(args: argparse.Namespace) -> Result:
    """Run the steps that are not done; write the results."""
    from ..apis.study import study
    made = study(args.study, args.out, args.jobs, args.gpus, args.only)
    print(made.table)
    print(f'also in {made.out}: results.csv, results.md, scores.png')
    for sentence in made.failed:
        print(sentence, file=sys.stderr)
    return dict(out=str(made.out), done=made.done, failed=made.failed,
                rows=made.rows, exit_status=1 if made.failed else 0)


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
        stopped=lambda args: 'finished runs are in '
        f'{output_folder(args.study, args.out)}, and the same command goes on',
        run=study),
]
