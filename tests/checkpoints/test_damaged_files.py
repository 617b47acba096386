"""Damaged files are detected or read correctly."""
import io
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import build, model_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import assert_same

from cmae_mm.checkpoints import (CheckpointError, check_complete,
                                 read_checkpoint)
from cmae_mm.checkpoints.read import load_file


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A checkpoint as bytes, and its content."""
    model = build(model_cfg(width=16, depth=1))
    path = tmp_path_factory.mktemp('whole') / 'a.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=1)), path)
    return path.read_bytes(), load_file(path)


def read_damaged(content: bytes, path: Path):
    """Give what is read, or None where the damage is found."""
    path.write_bytes(content)
    try:
        check_complete(str(path))
        found = False
    except CheckpointError as error:
        assert path.name in str(error) and '\n' not in str(error)
        found = True
    try:
        return load_file(path)
    except CheckpointError as error:
        assert path.name in str(error) and '\n' not in str(error)
        assert found, f'check_complete did not see: {error}'
        return None


def test_files_cut_off_emptied_or_zeroed(whole, tmp_path):
    content, _ = whole
    path = tmp_path / 'a.pth'
    cuts = [0, 1, 3, 4, 100, *range(0, len(content), len(content) // 50),
            len(content) - 1]
    for cut in cuts:
        assert read_damaged(content[:cut], path) is None, cut
    assert read_damaged(bytes(len(content)), path) is None
    with pytest.raises(CheckpointError, match='there is no checkpoint'):
        check_complete(str(tmp_path / 'none.pth'))


@pytest.mark.parametrize('content, words', [
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (b'\n <!DOCTYPE html><html>', 'is a web page'),
    (b'{"error": "not found"}', 'is a JSON file'),
    (b'Entry not found', "is a text file ('Entry not found')"),
    (b'PK\x03\x04 cut off', 'its end is missing'),
    (b'\x1f\x8b', 'is an archive'), (b'', 'is empty')])
def test_files_that_are_no_checkpoints(content, words, tmp_path):
    """In one sentence, whatever their names are."""
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value) and words in str(error.value)
        assert '\n' not in str(error.value)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / 'weights.pth').touch()
    (tmp_path / 'sharded').mkdir()
    (tmp_path / 'sharded/.metadata').touch()
    for path, words in (
            (tmp_path, 'contains no checkpoint; name a file, such as weights'),
            (tmp_path / 'sharded', 'dcp_to_torch'),
            ('https://a.org/mae.pth', 'https://a.org/mae.pth is an address'),
            ('facebook/vit-mae-base', 'download the folder')):
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(path)


def test_a_flipped_bit_is_found_in_every_record(whole, tmp_path):
    content, _ = whole
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = [i for i in archive.infolist() if i.file_size]
    for info in infos:
        header = content[info.header_offset:info.header_offset + 30]
        start = info.header_offset + 30 + sum(
            int.from_bytes(header[i:i + 2], 'little') for i in (26, 28))
        for position in (start, start + info.file_size - 1):
            broken = bytearray(content)
            broken[position] ^= 1
            (tmp_path / 'a.pth').write_bytes(broken)
            with pytest.raises(CheckpointError, match='a.pth is damaged'):
                check_complete(str(tmp_path / 'a.pth'))
    # torch's own reader takes the last of them
    torch.load(tmp_path / 'a.pth', weights_only=True)


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damage_is_found_or_does_no_harm(whole, tmp_path_factory, data):
    """Wherever it is: in a record, a header, the directory, between them."""
    content, value = whole
    broken = bytearray(content)
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        broken[start] ^= 1 << data.draw(st.integers(0, 7))
    else:
        broken[start:start + 4096] = bytes(len(broken[start:start + 4096]))
    path = tmp_path_factory.getbasetemp() / 'broken.pth'
    read = read_damaged(bytes(broken), path)
    if read is not None:
        assert_same(value, read)


def test_legacy_files_that_are_cut_off(tmp_path):
    torch.save(dict(a=torch.randn(30), b=torch.ones(2)), tmp_path / 'a.pth',
               _use_new_zipfile_serialization=False)
    content = (tmp_path / 'a.pth').read_bytes()
    for cut in range(0, len(content), 7):
        assert read_damaged(content[:cut], tmp_path / 'b.pth') is None, cut
