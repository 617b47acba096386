"""Outputs are written atomically, by one process."""
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from cmae_mm import files
from cmae_mm.files import (OutputInUse, append_line, atomic_file, atomic_path,
                           check_output, output_lock, remove_temporaries,
                           write_file)

needs_user = pytest.mark.skipif(
    os.geteuid() == 0, reason='root may write everywhere')


def left_in(folder: Path) -> list:
    return sorted(os.listdir(folder))


@given(name=st.text(st.characters(blacklist_characters='/\0'), min_size=1,
                    max_size=60).filter(lambda name: name not in '..'),
       data=st.binary())
@settings(deadline=None, max_examples=50)
def test_any_name_and_content(tmp_path_factory, name, data):
    name = name.encode('utf-8', 'surrogatepass')[:250]
    folder = tmp_path_factory.mktemp('f')
    path = os.fsdecode(os.fsencode(folder) + b'/' + name)
    write_file(path, data)
    assert Path(path).read_bytes() == data
    assert os.listdir(os.fsencode(folder)) == [name]


@pytest.mark.parametrize('name', ['a' * 255, b'\xff\xfe.npz', 'a\nb.html'])
def test_names_that_are_long_or_no_text(tmp_path, name):
    path = os.fsdecode(os.fsencode(tmp_path) + b'/' + os.fsencode(name))
    write_file(path, 'x\udcff')
    assert Path(path).read_bytes() == b'x\xff'
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_error_keeps_the_previous_file(tmp_path):
    path = tmp_path / 'sub/out.npz'
    write_file(path, b'old')
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), atomic_file(path) as file:
            file.write(b'new')
            raise error
        with pytest.raises(error), atomic_path(path) as temporary:
            temporary.write_bytes(b'new')
            raise error
    assert path.read_bytes() == b'old' and left_in(path.parent) == ['out.npz']


def test_umask_and_file_mode_are_kept(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / 'a', b'')
        with atomic_path(tmp_path / 'b.safetensors') as temporary:
            save_file({'x': torch.zeros(2)}, temporary)
        (tmp_path / 'c').touch(0o666)
        os.chmod(tmp_path / 'c', 0o664)
        write_file(tmp_path / 'c', b'')
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode)
             for n in ('a', 'b.safetensors', 'c')]
    assert modes == [0o640, 0o640, 0o664]


def test_a_link_is_followed(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real/file')
    write_file(tmp_path / 'link', b'x')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'real/file').read_bytes() == b'x'


@pytest.mark.parametrize(('make', 'reason'), [
    (lambda p: p.mkdir(), 'Is a directory'),
    (lambda p: os.mkfifo(p), 'not a regular file'),
    (lambda p: p.symlink_to('/dev/null'), 'not a regular file'),
])
def test_outputs_that_are_not_files_raise(tmp_path, make, reason):
    path = tmp_path / 'out.html'
    make(path)
    before = path.lstat()
    for write in (lambda: write_file(path, b'x'), lambda: check_output(path)):
        with pytest.raises(OSError, match=reason) as caught:
            write()
        assert caught.value.filename == str(path)
    assert path.lstat().st_ino == before.st_ino
    assert left_in(tmp_path) == ['out.html']


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / 'file').touch()
    for act in (lambda: write_file(tmp_path / 'file/out', b''),
                lambda: check_output(tmp_path / 'file/out'),
                lambda: check_output(tmp_path / 'file/a/b', is_folder=True),
                lambda: output_lock(tmp_path / 'file/x', True).__enter__()):
        with pytest.raises(OSError, match='Not a directory'):
            act()
    with pytest.raises(OSError, match='it is a file, not a folder'):
        check_output(tmp_path / 'file', is_folder=True)
    check_output(tmp_path / 'new/sub/out')
    assert left_in(tmp_path) == ['file']


@needs_user
def test_without_permission(tmp_path):
    (tmp_path / 'file').touch(0o444)
    (tmp_path / 'folder').mkdir(0o555)
    for path in ('file', 'folder/out', 'folder/sub/out'):
        for act in (check_output, lambda p: write_file(p, b'')):
            with pytest.raises(PermissionError, match='Permission denied'):
                act(tmp_path / path)


# Writers of all kinds, which raise errors of their own on a full disk.
def _save_zip(path):
    with zipfile.ZipFile(path, 'w') as archive, archive.open('a', 'w') as a:
        for _ in range(200):
            a.write(os.urandom(20_000))


NOISE = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
BY_PATH = {
    'torch': lambda p: torch.save({'x': torch.rand(900, 900)}, p),
    'safetensors': lambda p: save_file({'x': torch.rand(900, 900)}, p),
    'pillow': lambda p: Image.fromarray(NOISE).save(p),
    'numpy': lambda p: NOISE.tofile(p),
    'zip': _save_zip,
}
BY_FILE = {
    'torch': BY_PATH['torch'],
    'bytes': lambda f: f.write(NOISE.tobytes()),
    'pieces': lambda f: [f.write(bytes(1000)) for _ in range(3000)],
    'numpy': lambda f: np.save(f, NOISE),
    'compressed': lambda f: np.savez_compressed(f, x=NOISE),
    'zip': _save_zip,
}


def test_full_disk_raises_one_error_with_the_path(tmp_path):
    with small_disk(tmp_path, 400_000) as disk:
        path = disk / 'out.png'
        path.write_bytes(b'old')
        for opened, writers in ((atomic_path, BY_PATH),
                                (atomic_file, BY_FILE)):
            for name, write in writers.items():
                with pytest.raises(OSError) as caught, opened(path) as place:
                    write(place)
                    pytest.fail(name)
                assert caught.value.filename == str(path), name
                assert 'cannot be written' in caught.value.strerror, name
                assert path.read_bytes() == b'old', name
                assert left_in(disk) == ['out.png'], name


def test_append_line_is_atomic(tmp_path):
    append_line(tmp_path / 'sub/lines', 'one')
    append_line(tmp_path / 'sub/lines', 'two')
    assert (tmp_path / 'sub/lines').read_text() == 'one\ntwo\n'
    with small_disk(tmp_path, 100_000) as disk:
        append_line(disk / 'lines', 'one')
        for length in (50_000, 150_000):
            with pytest.raises(OSError) as caught:
                for _ in range(4):
                    append_line(disk / 'lines', 'x' * length)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(disk / 'lines')
            assert (disk / 'lines').read_bytes().endswith(b'\n')


# A process that imports this module alone begins at once.
ALONE = dict(os.environ, PYTHONPATH=str(ROOT / 'cmae_mm'))
HOLD = """
import sys, time
from files import output_lock
with output_lock(sys.argv[1], sys.argv[2] == 'folder'):
    print('held', flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(path: Path, kind: str = 'file', seconds: float = 100):
    """Let another process hold an output."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(path), kind, str(seconds)],
        stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
        env=ALONE)
    assert process.stdout.readline() == 'held\n'
    return process


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_second_process_is_refused(tmp_path, kind):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    path = tmp_path / 'real/out.npz'
    for end in (signal.SIGTERM, signal.SIGKILL):
        holder = hold(path, kind)
        for spelling in (path, tmp_path / 'link/../real/./out.npz',
                         tmp_path / 'link/out.npz'):
            with pytest.raises(OutputInUse, match=(
                    f'process {holder.pid} on {socket.gethostname()}')):
                output_lock(spelling, kind == 'folder').__enter__()
        holder.send_signal(end)
        holder.wait()
        holder.stdout.close()
        with output_lock(path, kind == 'folder'):
            pass
        assert not list((tmp_path / 'real').rglob('*lock'))


def test_lock_is_free_after_its_process_has_ended(tmp_path):
    holder = hold(tmp_path / 'out', seconds=1)
    begun = time.monotonic()
    while True:
        try:
            with output_lock(tmp_path / 'out'):
                break
        except OutputInUse:
            assert time.monotonic() - begun < 20
            time.sleep(0.05)
    holder.wait()
    holder.stdout.close()


def test_one_process_does_not_hold_twice_and_a_child_does_not_inherit(
        tmp_path):
    with output_lock(tmp_path / 'out'):
        with pytest.raises(OutputInUse, match=f'process {os.getpid()} '):
            output_lock(tmp_path / 'out').__enter__()
        child = os.fork()
        if child == 0:
            try:
                output_lock(tmp_path / 'out').__enter__()
            except OutputInUse:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        # The child's end does not release it.
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run([sys.executable, '-c', HOLD, tmp_path / 'out',
                            'file', '0'], check=True,
                           stderr=subprocess.DEVNULL, env=ALONE)
    with output_lock(tmp_path / 'out'):
        pass


@pytest.mark.parametrize('text', [
    '', '{', '\xff', '{"pid": "x"}', 'process 1 on other (cmae)',
    f'process {2**22 + 1} on {socket.gethostname()} (cmae)'])
def test_a_lock_file_that_is_left_over_is_taken_over(tmp_path, text):
    file = tmp_path / '.out.lock'
    file.write_text(text)
    with output_lock(tmp_path / 'out'):
        assert file.read_text().startswith(f'process {os.getpid()} on ')
    assert not file.exists()


def test_forked_workers_of_a_killed_process_hold_no_lock(tmp_path):
    code = (
        'import os, sys, time\nfrom files import output_lock\n'
        'with output_lock(sys.argv[1]):\n'
        '    if os.fork() == 0:\n'
        '        time.sleep(2)\n        os._exit(0)\n'
        '    os.kill(os.getpid(), 9)')
    killed = subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'out'], env=ALONE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    with output_lock(tmp_path / 'out'):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(opened, how):
        raise OSError(errno.ENOSYS, 'no locks')

    monkeypatch.setattr(files.fcntl, 'lockf', no_locks)
    with output_lock(tmp_path / 'out'):
        write_file(tmp_path / 'out', b'x')
    assert left_in(tmp_path) == ['out']


def test_many_processes_never_hold_together(tmp_path):
    code = """
import sys, os, time
from files import OutputInUse, output_lock
for _ in range(60):
    try:
        with output_lock(sys.argv[1]):
            fd = os.open(sys.argv[1] + '.in', os.O_CREAT | os.O_EXCL)
            time.sleep(.001)
            os.close(fd)
            os.unlink(sys.argv[1] + '.in')
            open(sys.argv[1] + '.count', 'a').write('x')
    except OutputInUse:
        time.sleep(.001)
"""
    running = [subprocess.Popen(
        [sys.executable, '-c', code, tmp_path / 'out'],
        env=ALONE)
        for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len((tmp_path / 'out.count').read_text()) > 20


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    code = ('import os, signal, sys\nfrom files import atomic_file\n'
            'with atomic_file(sys.argv[1]) as f:\n f.write(b"x" * 10**6)\n'
            ' os.kill(os.getpid(), signal.SIGKILL)')
    subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'out.npz'],
        env=ALONE)
    assert len(left_in(tmp_path)) == 1
    with atomic_path(tmp_path / 'mine') as temporary:
        remove_temporaries(tmp_path)
        assert temporary.exists()
    assert left_in(tmp_path) == ['mine']
    remove_temporaries(tmp_path / 'missing')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path, number):
    code = ('import sys, time\nfrom files import atomic_file, output_lock\n'
            'with output_lock(sys.argv[1]), atomic_file(sys.argv[1]) as f:\n'
            ' f.write(b"x" * 10**6)\n print(1, flush=True)\n'
            ' time.sleep(100)')
    process = subprocess.Popen(
        [sys.executable, '-c', code, tmp_path / 'new/out.npz'], env=ALONE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process.stdout:
        process.stdout.readline()
    assert len(left_in(tmp_path / 'new')) == 2
    process.send_signal(number)
    assert process.wait() in (128 + number, -number)
    assert left_in(tmp_path) == []
