"""The report: its content, and how it looks in a real browser."""
import json
import re

import chromium
import numpy as np
import pytest
from PIL import Image

from cmae_mm.apis.report import report, results_of, settings_of, time_of
from cmae_mm.apis.report_checks import check_report
from cmae_mm.visualization.report_page import Chart, collect_charts, table
from cmae_mm.visualization.runs import name_runs, read_run, series

pytest.importorskip('plotly', reason='plotly is not installed')
needs_chromium = pytest.mark.skipif(
    chromium.PROGRAM is None,
    reason="Chromium is not installed (Debian's package `chromium`)")

LOG = '''2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.11
    GPU 0: {gpu}

Runtime environment:
    seed: 0
------------------------------------------------------------

2026/01/01 00:00:01 - mmengine - INFO - Iter(train) [20/60]  loss: 1
'''
CONFIG = '''model = dict(backbone=dict(mask_ratio={ratio}), type='CMAE')
optim_wrapper = dict(optimizer=dict(lr=0.001))
work_dir = '/somewhere/{ratio}'
'''


def write_start(folder, name, first, last, ratio=0.65, gpu='A', spoilt=()):
    """Write what one start of a training leaves behind."""
    data = folder / name / 'vis_data'
    data.mkdir(parents=True)
    lines = []
    for i in range(first, last + 1):
        loss = float('nan') if i in spoilt else 2 / i + first / 1000
        lines.append(dict(loss=loss, loss_rc=1 / i, loss_ct=1 / i, lr=1e-3,
                          rho_pos=0.5, rho_neg=0.1, acc_ct=i, erank=5.,
                          time=2., data_time=0.5, iter=i, step=i))
        lines.append({'iter': i, 'health/positive_rank': 30 / i,
                      'health/erank_online': 5., 'health/erank_target': 6.,
                      'health/images_seen': 64 * i, 'health/data_wait': 25.,
                      'health/grad/backbone': 0.1 * i,
                      'health/energy_wh': 2. * i, 'step': i})
        if i % 10 == 0:
            lines.append({'knn/top1_k20': 40. + i, 'iter': i, 'step': i})
    (data / 'scalars.json').write_text(
        '\n'.join(map(json.dumps, lines)) + '\n{"loss": 1, "st')
    (data / 'config.py').write_text(CONFIG.format(ratio=ratio))
    (folder / name / f'{name}.log').write_text(LOG.format(gpu=gpu))
    (data / 'vis_image').mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (60, 900, 3), np.uint8)
    Image.fromarray(picture).save(
        data / f'vis_image/reconstruction_{last}.png')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A run that was stopped and resumed, and another with other settings."""
    root = tmp_path_factory.mktemp('runs')
    write_start(root / 'first', '20260101_000000', 1, 25)
    write_start(root / 'first', '20260101_010000', 21, 60)
    # As long as people make them, and with what a page must not take as its
    # own.
    second = root / '0123456789_a_name_as_long_as_people_make_them<script>'
    write_start(second, '20260101_000000', 1, 60, 0.75, 'B', spoilt=(7, ))
    first = root / 'first'
    result = dict(checkpoint=str(first / 'iter_60.pth'), encoder='online',
                  kind='knn', top1=61.234, best_k=20, interval=[58.1, 64.2],
                  pool='mean')
    (root / 'config_eval').mkdir()
    (root / 'config_eval/evaluations.jsonl').write_text(
        json.dumps(result) + '\n' + json.dumps(
            dict(result, checkpoint='/elsewhere/iter_1.pth')) + '\n')
    return first, second


def test_a_resumed_run_is_read_as_one(folders):
    run = read_run(folders[0])
    iterations, losses = series(run, 'loss')
    assert iterations == list(range(1, 61))
    # 21 to 25 were made twice: the later ones count.
    assert losses[19] == pytest.approx(2 / 20 + 0.001)
    assert losses[20] == pytest.approx(2 / 21 + 0.021)
    assert run.total == 60 and run.seconds == pytest.approx(120)
    assert series(run, 'knn/top1_k20') == [
        [10, 20, 30, 40, 50, 60], [50, 60, 70, 80, 90, 100]]
    assert run.environment['GPU 0'] == 'A'
    assert [r['top1'] for r in run.evaluations] == [61.234]
    assert len(series(read_run(folders[1]), 'loss')[0]) == 59


def test_the_page_says_what_there_is(folders, tmp_path):
    made = report(folders, tmp_path / 'sub/report.html')
    page = made.out.read_text()
    # Nothing is asked for from elsewhere, and no name ends the script.
    own = re.sub(r'<script>.*?</script>', '', page, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', own)
    data = json.loads(re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page,
        re.S)[1])
    assert [r['name'] for r in data['runs']] == made.runs
    assert data['extent'] == [1, 60]
    titles = {chart['title'] for chart in data['charts']}
    assert {'Rank of the positive', 'Gradient norms', 'Learning rate',
            'Evaluation while it trains'} <= titles
    for words in ('61.23', '58.10 to 64.20', 'model.backbone.mask_ratio',
                  '0.75', '0.120 kWh', '3,840', 'GPU 0', 'image/png',
                  'them&lt;script&gt;', '2 min'):
        assert words in own, words
    assert '/somewhere' not in re.sub(r'<pre.*?</pre>', '', own, flags=re.S)


@needs_chromium
@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_it_is_right_in_a_browser(folders, tmp_path, width, dark):
    out = report(folders, tmp_path / 'report.html').out
    with chromium.Page() as page:
        page.open(out, width, dark=dark)
        assert page.run('document.querySelectorAll(".chart .main-svg").length'
                        ) >= 12
        # Nothing is wider than the window.
        assert page.run('document.documentElement.scrollWidth') == width
        beyond = page.run('''[...document.querySelectorAll("body *")].filter(
            e => e.getBoundingClientRect().right > innerWidth + 1
              && !e.closest(".scroll, pre, .chart, .skip"))
            .map(e => e.outerHTML.slice(0, 80))''')
        assert beyond == []
        contrast = page.run('''(() => {
            const shade = text => {
                const c = text.match(/[\\d.]+/g).slice(0, 3).map(v => {
                    v /= 255;
                    return v <= .04045 ? v / 12.92
                                       : ((v + .055) / 1.055) ** 2.4;
                });
                return .2126 * c[0] + .7152 * c[1] + .0722 * c[2];
            };
            const back = shade(
                getComputedStyle(document.body).backgroundColor);
            return [back, ...["p", ".soft", "a", "th", "h2", ".healthy"].map(
                s => {
                    const e = document.querySelector("main " + s + "," + s);
                    const own = shade(getComputedStyle(e).color);
                    return (Math.max(own, back) + .05)
                         / (Math.min(own, back) + .05);
                })];
        })()''')
        assert (contrast[0] < 0.05) == dark
        assert min(contrast[1:]) >= 4.5, contrast
        # By keyboard: to a chart, into it, and out again.
        for _ in range(60):
            page.press('Tab')
            if page.run('document.activeElement.className').startswith(
                    'chart'):
                break
        else:
            raise AssertionError('Tab leads to no chart')
        shown = 'document.getElementById("shown").textContent'
        page.press('+', '+')
        assert page.run(shown) == 'iterations 16 to 45'
        ranges = page.run('''new Promise(done => setTimeout(() => done(
            [...document.querySelectorAll(".chart")].map(
                c => c.layout.xaxis.range.map(Math.round).join())), 500))''')
        assert set(ranges) == {'16,45'}
        page.press('0', '0')
        assert page.run(shown) == 'all iterations'
        # A run is hidden, and another theme chosen.
        lines = 'document.querySelector(".chart").data.length'
        assert page.run(lines) == 2
        page.run('document.querySelector("[data-run]").click()')
        assert page.run(lines) == 1
        before = page.run('getComputedStyle(document.body).backgroundColor')
        page.run('document.getElementById("theme").click();'
                 'document.getElementById("theme").click()')
        after = page.run('getComputedStyle(document.body).backgroundColor')
        assert (before == after) == dark  # system, light, dark
        assert page.problems == []
        assert {url.split(':')[0] for url in page.requests} <= {
            'file', 'data', 'blob'}


def test_names_tell_runs_apart(tmp_path):
    assert name_runs([tmp_path / 'a/x', tmp_path / 'b/x']) == ['a/x', 'b/x']
    assert name_runs([tmp_path / 'a', tmp_path / 'b']) == ['a', 'b']


def test_charts_leave_out_what_cannot_be_drawn(folders):
    run = read_run(folders[0])
    run.rows.append({'iter': 61, 'health/grad/backbone': 0.})
    charts = collect_charts([run], [
        Chart('norms', '', ('health/grad/*', ), log=True),
        Chart('nothing', '', ('of_nobody', ))])
    assert [c['title'] for c in charts] == ['norms']
    assert charts[0]['names'] == ['backbone']
    assert min(charts[0]['series'][0]['y']) > 0
    assert '<b>' not in table(['<b>'], [['<b>']])


def test_settings_and_results_are_for_people():
    assert settings_of(dict(
        model=dict(a=[1, 2], b=dict(c=None), d=[dict(e=1)]), work_dir='x')
    ) == {'model.a': [1, 2], 'model.b.c': None, 'model.d.0.e': 1}
    assert results_of({'1': 20.5, '1_std': 1.2, '1pct': 43.1}) == [
        ('1 a class', '20.50', '+- 1.20 (deviation)'), ('1pct', '43.10', '')]
    assert [time_of(s) for s in (5, 90, 7500)] == ['5 s', '2 min', '2 h 5 min']


def test_what_is_no_run_is_refused(tmp_path, folders, monkeypatch):
    for given, message in (
            (([tmp_path / 'none'], 'a.html'), 'there is no folder'),
            (([tmp_path], 'a.html'), 'the work folder of a training'),
            ((folders, 'a.pdf'), 'written as .html')):
        with pytest.raises(ValueError, match=message):
            check_report(*given)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'plotly.*\[report\]'):
        check_report(folders, 'a.html')
