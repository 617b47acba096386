"""The file of image statistics: written, read back, and refused."""
import json

import pytest

from cmae_mm.datasets.image_stats import (
    ImageStatsError,
    read_image_stats,
    write_image_stats,
)

GOOD = dict(
    images=3, channels=2, dtype='uint16', mean=[10., 400.], std=[2., 30.],
    min=[0, 300], max=[20, 4095], sizes={}, types={}, broken=[])


def test_what_is_written_reads_back(tmp_path):
    write_image_stats(GOOD, tmp_path / 'a/stats.json')
    stats = read_image_stats(tmp_path / 'a/stats.json')
    assert stats == {'format': 'cmae_mm image stats 1', **GOOD}
    assert [p.name for p in (tmp_path / 'a').iterdir()] == ['stats.json']


@pytest.mark.parametrize('change,said', [
    (dict(format='other'), 'format'),
    (dict(images=0), '"images" must be a whole number of 1 or more'),
    (dict(channels=65), 'at most 64, but is 65'),
    (dict(channels=True), '"channels"'),
    (dict(dtype='int16'), 'uint8, uint16, float32, but is .int16.'),
    (dict(mean=[1.]), '"mean" must be a list of 2 finite numbers'),
    (dict(std=[1., float('nan')]), '"std" must be a list of 2 finite'),
    (dict(max=['1', 2]), '"max"'),
    (dict(mean=[10., 5000.]), 'channel 1, 5000.0, is not within its range'),
    (dict(std=[0., 1.]), 'channel 0 .*the same everywhere'),
])
def test_what_contradicts_itself_is_refused(change, said, tmp_path):
    path = tmp_path / 'stats.json'
    path.write_text(json.dumps(
        {'format': 'cmae_mm image stats 1', **GOOD, **change}))
    with pytest.raises(ImageStatsError, match=f'stats.json.*{said}'):
        read_image_stats(path)


def test_no_file_and_no_json_are_refused(tmp_path):
    with pytest.raises(ImageStatsError, match='cmae stats DATA --out'):
        read_image_stats(tmp_path / 'none.json')
    (tmp_path / 'text.json').write_text('mean 3')
    with pytest.raises(ImageStatsError, match='text.json cannot be read'):
        read_image_stats(tmp_path / 'text.json')
