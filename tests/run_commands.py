"""Runs several command lines of ``cmae`` in one process, which imports once.

Reads a JSON list of commands, each a list of arguments that begins with the
command's name; writes a JSON list of ``[exit status, output]``.
"""
import io
import json
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout


def run_one(command):
    """Run a command like a shell; return its status and output."""
    from cmae_mm.cli.main import main
    output = io.StringIO()
    sys.argv = ['cmae', *command]
    code = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
            code = 'traceback'
    return code, output.getvalue()


if __name__ == '__main__':
    sys.argv = ['cmae']  # before the package is imported, as in a shell
    print(json.dumps([run_one(c) for c in json.load(sys.stdin)]))
