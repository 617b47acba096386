"""Progress with and without a terminal, and messages of Ctrl-C."""
import io
import itertools
import logging
import os
import signal
import sys
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from helpers import runner_cfg, write_images

from cmae_mm import progress
from cmae_mm.cli import main
from cmae_mm.engine import ProgressHook, ResumableRunner


class Terminal(io.StringIO):

    def isatty(self):
        return True


def test_terminal_shows_a_bar(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with progress.Progress(4, 'features', initial=1) as shown:
        shown.update(2)
        shown.update(1, total=5)
    said = sys.stderr.getvalue()
    assert 'features' in said and '4/5' in said and '\r' in said


def test_log_lines_are_above_the_bar(monkeypatch):
    """And what is printed to a file stays there; no thread draws."""
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, 'stderr', terminal)
    monkeypatch.setattr(sys, 'stdout', file)
    logger = logging.Logger('test')
    handlers = [logging.StreamHandler(terminal), logging.StreamHandler(file)]
    for handler in handlers:
        logger.addHandler(handler)
    threads = threading.active_count()
    with progress.Progress(4, 'training', plain=False) as shown:
        shown.show_logs_above(logger.handlers)
        assert threading.active_count() == threads
        logger.warning('the loss is 3')
        print('printed')
    logger.warning('the end')
    assert file.getvalue() == 'the loss is 3\nprinted\nthe end\n'
    before, after = terminal.getvalue().split('the loss is 3\n')
    assert 'training' in before and 'training' in after
    assert after.endswith('the end\n')
    assert terminal.getvalue().rindex('\x1b[?25h') > (
        terminal.getvalue().rindex('\x1b[?25l'))
    assert sys.stderr is terminal and handlers[0].stream is terminal


def test_training_without_a_terminal_prints_no_progress(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    monkeypatch.setattr(progress, 'time', SimpleNamespace(
        monotonic=iter(range(0, 10**6, 100)).__next__))
    with progress.Progress(4, 'training', plain=False) as shown:
        for _ in range(3):
            shown.update()
    assert sys.stderr.getvalue() == ''


def test_a_file_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    clock = itertools.chain([0, 10, 40], itertools.repeat(60))
    monkeypatch.setattr(progress, 'time', SimpleNamespace(
        monotonic=lambda: next(clock)))
    with progress.Progress(5000, 'features') as shown:
        for _ in range(3):
            shown.update(1000)
    # one after 30 seconds or more, and not again 20 seconds later
    assert sys.stderr.getvalue() == (
        'features: 2,000 of 5,000 images, 1 min 0 s left\n')
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with progress.Progress(1, 'nothing', enabled=False) as shown:
        shown.update()
    assert sys.stderr.getvalue() == ''


@pytest.mark.parametrize('seconds, text', [
    (20.4, '20 s'), (200, '3 min 20 s'), (7500, '2 h 5 min')])
def test_describe_seconds(seconds, text):
    assert progress.describe_seconds(seconds) == text


def test_training_has_a_bar_on_a_terminal_only(image_root, tmp_path,
                                               monkeypatch):
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stderr', stream)
        runner = ResumableRunner.from_cfg(
            runner_cfg(image_root, tmp_path / str(shown)))
        assert [h for h in runner.hooks if isinstance(h, ProgressHook)]
        runner.train()
        assert ('training' in stream.getvalue()
                and '2/2' in stream.getvalue()) == shown


STOPPED = {
    'embed': (['embed', 'DATA', 'MODEL', '--out', 'f.npz'],
              'the features so far are in f.npz.parts; the same command '
              'continues'),
    'store': (['store', 'DATA', 'no_store_yet'], 'nothing was written'),
    'study': (['study', 'studies/tiles.yaml'],
              'work_dirs/tiles; the same command continues'),
    'knn': (['knn', 'DATA', 'MODEL'], 'nothing was written'),
}
# What is interrupted by Ctrl-C.
WORK = {
    'embed': 'cmae_mm.evaluation.features.compute_features',
    'knn': 'cmae_mm.evaluation.data.open_labelled',
    'store': 'cmae_mm.datasets.pack.pack_images',
    'study': 'cmae_mm.apis.study._run_all',
}


@pytest.mark.parametrize('name', STOPPED)
def test_ctrl_c_prints_what_was_saved(name, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / 'data', 1)
    (tmp_path / 'model.pth').touch()
    line, said = STOPPED[name]
    line = [dict(DATA=str(tmp_path / 'data'),
                 MODEL=str(tmp_path / 'model.pth')).get(w, w) for w in line]

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    monkeypatch.setattr(main, 'load_libraries', lambda *which: None)
    args = main.parse(line)
    if name in WORK:
        monkeypatch.setattr(WORK[name], interrupted)
        monkeypatch.setattr('cmae_mm.apis.encoder.load_encoder', MagicMock())
    else:
        args.chosen = args.chosen._replace(run=interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            main.run(args)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stop.value.code == 130
    error = capsys.readouterr().err
    assert f'cmae {name}: stopped; ' in error and said in error


def test_a_worker_leaves_ctrl_c_to_the_main_process():
    """Its features come although its workers are told to end."""
    import torch
    from torch.utils.data import DataLoader

    from cmae_mm.datasets.source import ignore_interrupts
    loader = DataLoader(torch.arange(8.), 1, num_workers=1,
                        worker_init_fn=ignore_interrupts)
    batches = iter(loader)
    next(batches)
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 7
