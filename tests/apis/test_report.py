"""The report: its content, and how it looks in a real browser."""
import json
import re

import chromium
import numpy as np
import pytest
from PIL import Image

from cmae_mm.apis.pictures import report
from cmae_mm.dependencies import MissingLibrary
from cmae_mm.visualization.html_report import Chart, collect_charts
from cmae_mm.visualization.runs import accuracies, read_run, series

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
                      'step': i})
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
    # A long name with a tag that must be escaped.
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
    assert run.seconds == pytest.approx(120)
    assert series(run, 'knn/top1_k20') == [
        [10, 20, 30, 40, 50, 60], [50, 60, 70, 80, 90, 100]]
    assert run.environment['GPU 0'] == 'A'
    assert [r.top1 for r in run.evaluations] == ['61.23']
    assert run.damage == []
    assert len(series(read_run(folders[1]), 'loss')[0]) == 59


def test_content_of_the_report(folders, tmp_path):
    made = report(folders, tmp_path / 'sub/report.html')
    page = made.out.read_text()
    own = re.sub(r'<script.*?</script>', '', page, flags=re.S)
    # Nothing is loaded from elsewhere, and names are escaped.
    assert not re.search(r'(?:src|href)="(?!data:|#)', own)
    assert 'them<script>' not in page
    for words in ('61.23', '58.10 to 64.20', '(mask_ratio=0.65)',
                  '0.75', '3,840', 'GPU 0', 'image/png',
                  'them&lt;script&gt;', '2 min', 'Rank of the positive',
                  'Gradient norms', 'Learning rate',
                  'Evaluation during training'):
        assert words in own, words


@needs_chromium
@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_report_in_a_browser(folders, tmp_path, width, dark):
    out = report(folders, tmp_path / 'report.html').out
    with chromium.Page() as page:
        page.open(out, width, dark=dark)
        plot = 'document.querySelector(".plotly-graph-div")'
        assert page.run(f'{plot}.querySelectorAll(".xy, .subplot").length'
                        ) >= 11
        # Nothing is wider than the window.
        assert page.run('document.documentElement.scrollWidth') == width
        beyond = page.run('''[...document.querySelectorAll("body *")].filter(
            e => e.getBoundingClientRect().right > innerWidth + 1
              && !e.closest(".scroll, pre"))
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
            return [back, ...["p", ".soft", "a", "th", "h2", ".good"].map(
                s => {
                    const e = document.querySelector("main " + s + "," + s);
                    const own = shade(getComputedStyle(e).color);
                    return (Math.max(own, back) + .05)
                         / (Math.min(own, back) + .05);
                })];
        })()''')
        assert (contrast[0] < 0.05) == dark
        assert min(contrast[1:]) >= 4.5, contrast
        # A drag over one chart zooms all of them.
        x, y, wide = page.run(f'''(() => {{
            {plot}.scrollIntoView();
            const box = {plot}.querySelector(".nsewdrag")
                .getBoundingClientRect();
            return [box.x, box.y + box.height / 2, box.width];
        }})()''')
        for kind, place in (('mousePressed', .25), ('mouseMoved', .5),
                            ('mouseMoved', .75), ('mouseReleased', .75)):
            page.call('Input.dispatchMouseEvent', type=kind, button='left',
                      buttons=1, clickCount=1, x=x + wide * place, y=y)
        ranges = page.run(f'''new Promise(done => setTimeout(() => done(
            Object.entries({plot}._fullLayout).filter(
                ([key, axis]) => /^xaxis/.test(key)).map(
                ([key, axis]) => axis.range.map(Math.round).join())), 500))
        ''')
        assert len(ranges) >= 11 and len(set(ranges)) == 1
        assert 10 < int(ranges[0].split(',')[0]) < 20
        assert page.problems == []
        assert {url.split(':')[0] for url in page.requests} <= {
            'file', 'data', 'blob'}


def test_charts_omit_values_that_cannot_be_drawn(folders):
    run = read_run(folders[0])
    run.rows.append({'iter': 61, 'health/grad/backbone': 0.})
    (chart, curves), = collect_charts([run], [
        Chart('norms', '', ('health/grad/*', ), log=True),
        Chart('nothing', '', ('of_nobody', ))]).items()
    assert chart.title == 'norms'
    assert [c.name for c in curves] == ['backbone'] and min(curves[0].y) > 0


def test_accuracies_as_text():
    assert accuracies({'1': 20.5, '1_std': 1.2, '1pct': 43.1}) == [
        ('1 a class', '20.50', '+- 1.20 (deviation)'), ('1pct', '43.10', '')]


DAMAGED = ('{', '[]', 'null', '[' * 100_000, '1' * 10_000, '"\udcff"',
           '{"step": 1e999}', '{"step": NaN}', '{"step": "1"}',
           '{"top1": 3, "checkpoint": 5, "kind": "knn"}',
           '{"top1": [], "checkpoint": "FOLDER/a.pth", "kind": "knn"}',
           '{"top1": 3, "checkpoint": "FOLDER/a.pth", "kind": "knn", '
           '"interval": [1]}')


def test_a_damaged_run_is_named_beside_the_others(tmp_path):
    write_start(tmp_path / 'whole', 'a', 1, 30)
    write_start(tmp_path / 'damaged', 'a', 1, 30)
    log = tmp_path / 'damaged/a/vis_data/scalars.json'
    for file in (log, tmp_path / 'damaged/evaluations.jsonl'):
        lines = [line.replace('FOLDER', str(tmp_path / 'damaged'))
                 for line in DAMAGED]
        before = file.read_text() if file is log else ''
        lines = [*lines, before, '{"step": 31, "loss": %s}' % ('1' * 400), '']
        file.write_bytes('\n'.join(lines).encode(errors='surrogateescape'))
    made = report([tmp_path / 'damaged', tmp_path / 'whole'],
                  tmp_path / 'r.html')
    for name in ('scalars.json: ', 'evaluations.jsonl: '):
        assert any(name in text for text in made.warnings['damaged']), name
    assert not any('scalars.json' in text for text in made.warnings['whole'])
    # One without a log, and alone.
    (tmp_path / 'none').mkdir()
    made = report([tmp_path / 'none', tmp_path / 'whole'],
                  tmp_path / 'r.html')
    assert 'none has no */vis_data/scalars.json' in made.warnings['none'][0]
    with pytest.raises(FileNotFoundError, match='work folder of a training'):
        report([tmp_path / 'none'], tmp_path / 'r.html')


def test_folders_without_a_run_raise(tmp_path, folders, monkeypatch):
    for given, message in (
            (([tmp_path / 'none'], 'a.html'), 'none does not exist'),
            ((folders, 'a.pdf'), 'must be a .html or .htm file')):
        with pytest.raises(ValueError, match=message):
            report(*given)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(MissingLibrary, match=r'plotly.*\[report\]'):
        report(folders, 'a.html')
