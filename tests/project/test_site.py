"""The documentation as a site."""
import importlib.util
import re
import subprocess
import sys

import chromium
import pytest
from helpers import ROOT
from mmpretrain import registry

PAGES = [p.stem for p in (ROOT / 'docs').glob('*.md')]
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec('mkdocs') is None
    or importlib.util.find_spec('mkdocstrings') is None,
    reason="mkdocs is not installed (pip install -e '.[docs]')")


def test_every_page_is_in_the_navigation():
    listed = re.findall(r'- ([\w-]+)\.md', (ROOT / 'mkdocs.yml').read_text())
    assert sorted(listed) == sorted(PAGES)


def test_the_reference_has_every_class_of_configs():
    text = (ROOT / 'docs/api.md').read_text()
    named = {n.split('.')[-1] for n in re.findall(r'^::: (\S+)', text, re.M)}
    ours = {
        name for key, one in vars(registry).items() if key.isupper()
        for name, kind in one.module_dict.items()
        if kind.__module__.startswith('cmae_mm.')
        and not kind.__module__.startswith('cmae_mm.dense')
    }
    # of logging, which no config has to name
    assert ours - named <= {'ProgressHook', 'WandbBackend', 'MLflowBackend'}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build it, every warning an error."""
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
         str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@needs_mkdocs
def test_it_is_built(site):
    assert {p.stem for p in site.glob('*.html')} >= set(PAGES)
    reference = (site / 'api.html').read_text()
    assert 'mask_ratio' in reference and 'Raises' in reference


@needs_mkdocs
@pytest.mark.skipif(
    chromium.PROGRAM is None,
    reason="Chromium is not installed (Debian's package `chromium`)")
def test_no_page_is_wider_than_the_window(site):
    with chromium.Page() as page:
        for width in (1280, 390):
            for name in PAGES:
                page.open(site / f'{name}.html', width)
                assert page.run('document.documentElement.scrollWidth'
                                ) <= width, (name, width)
    # the diagrams' script is the only thing from elsewhere
    assert not [problem for problem in page.problems
                if 'mermaid' not in str(problem)]
