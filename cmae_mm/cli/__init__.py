"""The command ``cmae``: what a person types, wherever the package is."""
import runpy
import sys
from pathlib import Path
from typing import List, Optional

from ..packaged import packaged_root

# Names of the command's parts, and the files in tools/ that they are.
COMMANDS = dict(
    train=('train.py', 'train any config: pre-training or transfer'),
    test=('test.py', "test a checkpoint with its config's evaluators"),
    knn=('eval_knn.py', 'evaluate an encoder by k-nearest neighbours'),
    linear=('eval_linear.py', 'evaluate an encoder by linear probes'),
    low_shot=('eval_low_shot.py', 'evaluate an encoder with few labels'),
    convert=('convert.py', 'import and export checkpoints'),
    store=('convert_dataset.py', 'put a folder of images into one file'),
    splits=('make_splits.py', 'draw shares of a labelled data set'),
    verify=('verify_reference.py', 'compare with a recorded trace'),
    compare=('compare_starts.py', 'compare a pre-trained start with random'),
)


def usage() -> str:
    """Give the command's help."""
    width = max(len(name) for name in COMMANDS)
    lines = [
        'usage: cmae COMMAND [arguments]', '',
        'Contrastive Masked Autoencoders. Each command has --help.', ''
    ]
    lines += [
        f'  {name.replace("_", "-"):<{width}}  {text}'
        for name, (_, text) in COMMANDS.items()
    ]
    lines += [
        '', 'Configs are found by their name, for example:',
        '  cmae train cmae_vit-s_300e --work-dir work_dirs/mine'
    ]
    return '\n'.join(lines)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one of the commands.

    Args:
        arguments (List[str], optional): What follows ``cmae``. Defaults to
            the process's.

    Returns:
        int: The exit status, where the command does not exit by itself.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ('-h', '--help'):
        print(usage())
        return 0 if arguments else 2
    name = arguments[0].replace('-', '_')
    if name not in COMMANDS:
        print(
            f'cmae: there is no command {arguments[0]!r}; there are '
            f'{", ".join(c.replace("_", "-") for c in COMMANDS)}',
            file=sys.stderr)
        return 2
    script = Path(packaged_root()) / 'tools' / COMMANDS[name][0]
    sys.argv = [f'cmae {arguments[0]}', *arguments[1:]]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name='__main__')
    return 0
