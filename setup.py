"""Puts what stands beside the package into it: configs, tools, model index.

OpenMMLab's libraries carry these in ``<package>/.mim``, where ``mim`` and the
command ``cmae`` look for them. All else about the package is in setup.cfg.
"""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools', 'model-index.yml')
COMPILED = ('__pycache__', '*.pyc')
# What only a clone can do.
LEFT_OUT = {
    'tools': ('run_tests.sh', 'environment.sh', 'missing_requirements.py',
              'quickstart', 'quickstart.sh', 'check_gpu.sh',
              'release_check.sh', 'docs_site.py'),
}


class BuildWithMim(build_py):
    """Copies them; an editable installation finds them in the clone."""

    def run(self) -> None:
        """Build the package, then add ``.mim``."""
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'cmae_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in CARRIED:
            source = ROOT / name
            if source.is_dir():
                ignored = COMPILED + LEFT_OUT.get(name, ())
                shutil.copytree(source, mim / name,
                                ignore=shutil.ignore_patterns(*ignored))
            else:
                shutil.copy2(source, mim / name)


setup(cmdclass=dict(build_py=BuildWithMim))
