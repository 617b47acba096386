"""The site: built strictly, and tested in a browser without a network."""
import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from chromium import PROGRAM, Page
from helpers import ROOT

needs_mkdocs = [
    pytest.mark.skipif(
        importlib.util.find_spec(name) is None,
        reason=f"{name} is not installed: pip install -e '.[docs]'")
    for name in ('material', 'mkdocstrings_handlers', 'jupytext')
]
pytestmark = needs_mkdocs
WIDTHS = (1280, 390)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build the site; warnings are errors."""
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
         str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def pages(site):
    """Give the pages of the site, but for those of single source files."""
    found = sorted(str(p.relative_to(site)) for p in site.rglob('*.html'))
    return [p for p in found if not p.startswith(('source/', '404'))]


def article(site, page):
    """Give the text of a page, without what is code."""
    text = (site / page).read_text()
    text = text[text.index('<article'):text.index('</article')]
    return re.sub(r'<pre.*?</pre>|<code.*?</code>', '', text, flags=re.S)


def test_every_document_is_a_page(site, pages):
    for document in (ROOT / 'docs').glob('*.md'):
        assert f'{document.stem}.html' in pages
    assert 'index.html' in pages and 'CHANGELOG.html' in pages


def test_the_reference_is_made_of_docstrings(site):
    functions = (site / 'api/functions.html').read_text()
    assert 'id="cmae_mm.apis.training.pretrain"' in functions
    assert 'Raises:' in functions
    models = (site / 'api/models.html').read_text()
    import cmae_mm.models
    for name in cmae_mm.models.__all__:
        assert f'id="cmae_mm.models.{name}"' in models, name
        assert re.search(rf'id="cmae_mm\.models\.{name}".*?<p>\w', models,
                         re.S)


def test_every_class_of_configs_is_in_the_reference(site):
    from mmpretrain import registry
    text = ''.join(p.read_text() for p in (site / 'api').glob('*.html'))
    ours = {
        name for key, one in vars(registry).items() if key.isupper()
        for name, kind in one.module_dict.items()
        if kind.__module__.startswith('cmae_mm.')
        and not kind.__module__.startswith('cmae_mm.dense')
    }
    missing = {n for n in ours if not re.search(rf'id="[\w.]+\.{n}"', text)}
    # of the command's own output, which no config names
    assert len(ours) > 40 and missing <= {'ProgressHook'}


def test_no_markdown_is_left_in_the_pages(site, pages):
    """What GitHub takes as a list or a table, mkdocs may not."""
    left = re.compile(r'^\s*(?:[-*]|1\.) \w|^\| |^#+ |\]\(|:\w+:<', re.M)
    for page in pages:
        for _, text in re.findall(r'<(p|li|td)>(.*?)</\1>',
                                  article(site, page), re.S):
            assert not left.search(text), (page, text[:200])


def test_nothing_is_loaded_from_elsewhere(site, pages):
    outside = re.compile(r'<(?:script|img|link|iframe)\b[^>]*'
                         r'(?:src|href)="(?:https?:)?//[^"]*"')
    for page in pages:
        assert not outside.findall((site / page).read_text()), page


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map,
                      '.js': 'text/javascript'}

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope='module')
def address(site):
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(PROGRAM is None, reason='there is no Chromium')
def test_pages_fit_a_phone_and_a_screen(site, pages):
    with Page() as page:
        for name in pages:
            page.open(site / name, WIDTHS[0])
            for width in WIDTHS:
                page.call('Emulation.setDeviceMetricsOverride', width=width,
                          height=900, deviceScaleFactor=1, mobile=False)
                for _ in range(40):  # the menu slides away
                    wide = page.run('document.documentElement.scrollWidth')
                    if wide <= width:
                        break
                    time.sleep(0.05)
                assert wide <= width, (name, width, wide)
            broken = page.run('[...document.images].filter('
                              'i => !i.naturalWidth).map(i => i.src)')
            assert not broken, (name, broken)
        assert not page.problems
        assert all(r.startswith(('file:', 'data:', 'blob:'))
                   for r in page.requests)


@pytest.mark.skipif(PROGRAM is None, reason='there is no Chromium')
def test_the_site_is_searched_without_a_network(site, address):
    with Page() as page:
        page.open(f'{address}/index.html', WIDTHS[0])
        found = page.run('''new Promise(done => {
            const input = document.querySelector(".md-search__input");
            input.focus();
            input.value = "momentum";
            input.dispatchEvent(new Event("keyup", {bubbles: true}));
            const wait = setInterval(() => {
                const link = document.querySelector(
                    ".md-search-result__link");
                if (link) { clearInterval(wait); done(link.href); }
            }, 50);
        })''')
        shown = found.removeprefix(f'{address}/').partition('?')[0]
        assert 'momentum' in (site / shown.partition('#')[0]).read_text()
        assert not page.problems
        assert all(r.startswith((address, 'data:', 'blob:'))
                   for r in page.requests)
