"""Runs several command lines in one process, which imports once.

Reads a JSON list of commands, each a list of arguments that begins with a
script in tools/; writes a JSON list of ``[exit status or message, output]``.
"""
import io
import json
import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_one(command):
    """Run a command as ``python tools/...`` would."""
    output = io.StringIO()
    sys.argv = command
    code = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            runpy.run_path(
                str(ROOT / 'tools' / command[0]), run_name='__main__')
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
            code = 'traceback'
    return code, output.getvalue()


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT / 'tools'))
    print(json.dumps([run_one(c) for c in json.load(sys.stdin)]))
