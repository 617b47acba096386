"""Images above ``max_pixels``, and parts of images."""
import io
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from image_files import noise, pillow, tiff
from images import photo
from PIL import Image

from cmae_mm.datasets import LoadCanvas, LoadImage, ResizeImage
from cmae_mm.datasets.decode import LargeImage, TooLargeImage, UnfitImage
from cmae_mm.datasets.decode import decode as decoding
from cmae_mm.datasets.decode import (decode_image, decode_resized,
                                     decode_windows, make_settings,
                                     resize_image)
from cmae_mm.datasets.stats import measure_images
from cmae_mm.evaluation.features import CentreCrop

HEIGHT, WIDTH = 300, 420
WINDOWS = [(100, 50, 130, 201), (0, 0, HEIGHT, WIDTH),
           (HEIGHT - 1, WIDTH - 1, 1, 1), (37, 0, 5, WIDTH)]
SMOOTH = np.asarray(Image.fromarray(photo(64)).resize((WIDTH, HEIGHT)))


def geotiff(array, mask=None, **kwargs):
    """Let rasterio write a tiled GeoTIFF."""
    rasterio = pytest.importorskip('rasterio')
    from rasterio.transform import from_origin
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), \
            rasterio.MemoryFile() as memory:
        with memory.open(
                driver='GTiff', width=array.shape[1], height=array.shape[0],
                count=array.shape[2], dtype=array.dtype, tiled=True,
                blockxsize=64, blockysize=64, crs='EPSG:32632',
                transform=from_origin(0, 0, 1, 1), **kwargs) as file:
            file.write(np.moveaxis(array, 2, 0))
            if mask is not None:
                file.write_mask(mask)
        return memory.read()


def part(data, window, size, settings):
    """Decode a part of an image and resize it."""
    return decode_resized(data, lambda height, width: (window, size),
                          settings)


def pillow_tiff(array, **kwargs):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'TIFF', **kwargs)
    return file.getvalue()


RGB = noise((HEIGHT, WIDTH, 3), 'uint8', 256)
GREY = noise((HEIGHT, WIDTH), 'uint16', 60000)
TILED = {
    'plain': (lambda: tiff(RGB, photometric='rgb', tile=(64, 48)), {}),
    'big 8 bits': (lambda: tiff(
        RGB, photometric='rgb', tile=(64, 64), byteorder='>', bigtiff=True),
        {}),
    'deflate': (lambda: tiff(RGB, photometric='rgb', tile=(64, 64),
                             compression='zlib', predictor=2), {}),
    'planes': (lambda: tiff(
        np.moveaxis(RGB, 2, 0).copy(), photometric='rgb', tile=(64, 64),
        planarconfig='separate'), {}),
    'big': (lambda: tiff(GREY, tile=(64, 64), byteorder='>', bigtiff=True),
            dict(channels=1, dtype='uint16')),
    'white': (lambda: tiff(GREY, tile=(64, 64), photometric='miniswhite'),
              dict(channels=1, dtype='uint16')),
    'float': (lambda: tiff(
        noise((HEIGHT, WIDTH, 5), 'float32', 9), tile=(64, 64),
        photometric='minisblack', planarconfig='contig'),
        dict(channels=5, dtype='float32')),
    'bits': (lambda: tiff(GREY > 30000, tile=(64, 64),
                          photometric='minisblack'), {}),
    'palette': (lambda: tiff(
        RGB[..., 0], tile=(64, 64), photometric='palette',
        colormap=noise((3, 256), 'uint16', 65536)), {}),
    'LZW': (lambda: geotiff(RGB, compress='lzw', photometric='RGB'), {}),
    'ZSTD': (lambda: geotiff(RGB, compress='zstd', photometric='RGB'), {}),
    'JPEG': (lambda: geotiff(SMOOTH, compress='jpeg', photometric='YCBCR'),
             {}),
    'WebP': (lambda: geotiff(SMOOTH, compress='webp', photometric='RGB'), {}),
    'LERC': (lambda: geotiff(noise((HEIGHT, WIDTH, 2), 'float32', 99),
                             compress='lerc'),
             dict(channels=2, dtype='float32')),
    '12 bits': (lambda: geotiff(GREY[..., None] % 4096, nbits=12,
                                compress='zstd'),
                dict(channels=1, dtype='uint16')),
    'alpha': (lambda: geotiff(
        np.dstack([RGB, 255 * np.uint8(GREY > 9000)]), photometric='RGB',
        alpha='YES'), dict(channels=4)),
    'nodata': (lambda: geotiff(GREY[..., None] // 9000 * 9, nodata=0),
               dict(channels=1, dtype='uint16', fill=7)),
}


@pytest.mark.parametrize('name', TILED)
def test_a_part_has_the_pixels_of_the_whole(name, monkeypatch):
    make, wanted = TILED[name]
    data = make()
    whole = decode_image(data, settings=make_settings(**wanted))
    if name in ('plain', 'big 8 bits'):
        assert (whole[..., ::-1] == RGB).all()
    monkeypatch.setattr(decoding, '_BLOCK', 100 * WIDTH)
    read = []
    monkeypatch.setattr(decoding, 'decode_image',
                        lambda *args: read.append(args))
    for limit in (None, 90 * WIDTH):
        settings = make_settings(max_pixels=limit, **wanted)
        for y, x, height, width in WINDOWS:
            for size in ((40, 40), (height, width), (90, 30)):
                made = part(data, (y, x, height, width), size, settings)
                expected = resize_image(
                    whole[y:y + height, x:x + width], size)
                assert made.dtype == expected.dtype
                assert (made == expected).all(), (limit, y, size)
    assert not read  # never whole


STACK = noise((5, HEIGHT, WIDTH), 'uint16', 60000)


def pages(array=STACK, **kwargs):
    """Let tifffile write one page for each channel."""
    return tiff(array, **{'photometric': 'minisblack', **kwargs})


def pyramid():
    """An image of OME with two overviews of each page."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as writer:
        for step in (1, 2, 4):
            writer.write(
                STACK[:, ::step, ::step], photometric='minisblack',
                tile=(64, 64), metadata=dict(axes='CYX'),
                **dict(subifds=2) if step == 1 else dict(subfiletype=1))
    return file.getvalue()


@pytest.mark.parametrize('make,wanted', [
    (pages, dict(pages='channels')),
    (pages, {}),  # a numpy array
    (lambda: pages(byteorder='>', bigtiff=True), dict(pages='channels')),
    (lambda: pages(truncate=True), {}),
    (lambda: pages(metadata=None, compression='zlib', rowsperstrip=7),
     dict(pages='channels')),
    (lambda: pages(tile=(64, 48), predictor=2, compression='zlib'),
     dict(pages='channels')),
    (lambda: pages(imagej=True, metadata=dict(axes='CYX')), {}),
    (lambda: pages(STACK[:4].reshape(2, 2, HEIGHT, WIDTH), imagej=True,
                   metadata=dict(axes='TCYX')), dict(pages='channels')),
    (lambda: pages(STACK[:4].reshape(2, 2, HEIGHT, WIDTH), imagej=True,
                   metadata=dict(axes='TCYX')), dict(pages='first')),
    (pyramid, {}),
    (lambda: pages(np.stack([RGB, RGB[::-1]]), photometric='rgb'),
     dict(pages='channels', dtype='uint8')),
    (lambda: pages(np.stack([RGB, RGB[::-1]]), photometric='rgb'),
     dict(pages='first', dtype='uint8')),
    (lambda: pages(np.moveaxis([RGB, RGB[::-1]], 3, 1).copy(),
                   photometric='rgb', planarconfig='separate',
                   rowsperstrip=9), dict(pages='channels', dtype='uint8')),
    (lambda: pages(STACK[:3] > 9000, metadata=None, rowsperstrip=9),
     dict(pages='channels', dtype='uint8')),
    (lambda: pages(STACK[:3] > 9000, metadata=None, rowsperstrip=9),
     dict(pages='first', dtype='uint8')),
    (lambda: pages(STACK // 9000 * 9, metadata=None, extratags=[
        (42113, 's', 0, '9', True)]), dict(pages='channels', fill=7)),
    (lambda: pages(extratags=[(274, 'H', 1, 6, True)]),
     dict(pages='channels')),
])
def test_windows_of_pages_that_are_channels(make, wanted):
    data = make()
    wanted = {'channels': None, 'dtype': 'uint16', **wanted}
    whole = decode_image(data, settings=make_settings(**wanted))
    settings = make_settings(max_pixels=270 * WIDTH, **wanted)
    large = decode_windows(data, settings, 'x.tif')
    assert isinstance(large, LargeImage)
    assert large.shape == whole.shape[:2]
    for top, left, bottom, right in (
            (0, 0, *large.shape), (130, 33, 220, 233), (299, 299, 300, 300)):
        window = slice(top, bottom), slice(left, right)
        assert (large[window] == whole[window]).all()


def test_pages_of_bare_arrays_are_chosen_by_the_channels():
    """Of (H, W, C) tifffile makes pages of a row, which are read whole."""
    data = tiff(np.moveaxis(STACK, 0, 2).copy(), photometric='minisblack')
    settings = dict(channels=5, dtype='uint16')
    assert (decode_windows(data, make_settings(**settings), 'x')
            == np.moveaxis(STACK, 0, 2)).all()
    with pytest.raises(TooLargeImage, match='5x420 pixels of 600 bytes'):
        decode_windows(data, make_settings(
            max_pixels=90 * WIDTH, **settings), 'x')
    with pytest.raises(UnfitImage, match="has 2 pages: set pages='channels'"):
        decode_windows(pages(STACK[:2], metadata=None), make_settings(
            max_pixels=90 * WIDTH, **settings), 'x')


def test_an_image_with_a_missing_page_is_decoded_whole():
    """OME-TIFF of three channels, of which two are in the file."""
    pixels = (f'DimensionOrder="XYCZT" Type="uint16" SizeX="{WIDTH}" '
              f'SizeY="{HEIGHT}" SizeC="3" SizeZ="1" SizeT="1"')
    parts = ''.join(f'<TiffData IFD="{i}" FirstC="{i}" PlaneCount="1"/>'
                    for i in range(2))
    data = pages(STACK[:2], metadata=None, description=(
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/'
        f'Schemas/OME/2016-06"><Image ID="I"><Pixels ID="P" {pixels}>{parts}'
        '</Pixels></Image></OME>'))
    settings = make_settings(channels=3, dtype='uint16')
    whole = decode_image(data, settings=settings)
    assert (whole == np.dstack([*STACK[:2], 0 * STACK[0]])).all()
    with pytest.raises(TooLargeImage):
        part(data, (0, 0, 9, 9), (9, 9), settings._replace(max_pixels=9999))


@pytest.mark.parametrize('kwargs', [
    dict(photometric='palette', colormap=noise((3, 256), 'uint16', 65536)),
    dict(photometric='minisblack', bilevel=True)])
def test_overviews_change_no_pixel(kwargs):
    array = RGB[..., 0] > 99 if kwargs.pop('bilevel', 0) else RGB[..., 0]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for step in (1, 2):
            writer.write(array[::step, ::step], tile=(64, 64),
                         subfiletype=step - 1, **kwargs)
    alone = decode_image(tiff(array, **kwargs))
    for limit in (None, 70 * WIDTH):
        assert (part(file.getvalue(), (0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH),
                     make_settings(max_pixels=limit)) == alone).all()
    assert (decode_image(file.getvalue()) == alone).all()


@pytest.mark.parametrize('name,make,wanted', [
    ('strips', lambda: tiff(RGB, photometric='rgb', rowsperstrip=10), {}),
    ('Pillow', lambda: pillow_tiff(RGB, compression='tiff_lzw'), {}),
    ('mean', lambda: geotiff(GREY[..., None] // 9000 * 9, nodata=0),
     dict(channels=1, dtype='uint16', fill='mean')),
    ('range', lambda: geotiff(GREY[..., None]),
     dict(channels=1, value_range='per_image')),
    ('both', lambda: geotiff(GREY[..., None] // 9000 * 9, nodata=0),
     dict(channels=1, fill='mean', value_range='per_image')),
    ('mask', lambda: geotiff(RGB, GREY > 9000), dict(fill='mean')),
    ('alpha', lambda: geotiff(
        np.dstack([RGB, 255 * np.uint8(GREY > 9000)]), photometric='RGB',
        alpha='YES'), {})])
def test_what_depends_on_all_pixels(name, make, wanted):
    """Limits change what is decoded at once, but no pixel."""
    data = make()
    whole = decode_image(data, settings=make_settings(**wanted))
    for limit in (None, 70 * WIDTH):
        for y, x, height, width in WINDOWS[:2]:
            made = part(data, (y, x, height, width), (40, 44),
                        make_settings(max_pixels=limit, **wanted))
            assert (made == resize_image(
                whole[y:y + height, x:x + width], (40, 44))).all(), limit


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('make', [
    lambda tag: pillow_tiff(
        SMOOTH, compression='tiff_lzw', tiffinfo={274: tag}),
    lambda tag: tiff(SMOOTH, photometric='rgb', tile=(64, 48), extratags=[
        (274, 'H', 1, tag, True)])])
def test_parts_of_turned_images(make, orientation):
    data = make(orientation)
    whole = decode_image(data)
    settings = make_settings(max_pixels=70 * WIDTH)
    for y, x, height, width in WINDOWS[:2]:
        height, width = min(height, whole.shape[0]), min(width, whole.shape[1])
        made = part(data, (y, x, height, width), (40, 44), settings)
        expected = resize_image(
            whole[y:y + height, x:x + width], (40, 44))
        # Rows and columns are resized, and rounded, in another order.
        assert np.abs(made.astype(int) - expected).max() <= 1


def test_a_band_of_a_large_map_is_never_taken_for_alpha():
    data = geotiff(np.dstack([RGB, RGB[..., :1]]), photometric='RGB',
                   alpha='YES')
    with pytest.raises(UnfitImage, match='has 4 channel'):
        part(data, (0, 0, 9, 9), (9, 9),
             make_settings(max_pixels=70 * WIDTH))


def test_training_and_evaluation_are_those_of_the_whole(tmp_path):
    path = tmp_path / 'a.tif'
    path.write_bytes(tiff(RGB, photometric='rgb', tile=(64, 64)))
    (tmp_path / 'a.png').write_bytes(
        pillow_png(RGB))
    for limit in (None, 70 * WIDTH):
        load = LoadCanvas(48, max_pixels=limit)
        whole = LoadCanvas(48)
        for seed in range(20):
            made, expected = (
                transform(dict(img_path=str(file), view_seed=seed))
                for transform, file in (
                    (load, path), (whole, tmp_path / 'a.png')))
            assert (made['img'] == expected['img']).all()
            assert made['ori_shape'] == (HEIGHT, WIDTH)
        crop = CentreCrop(64, dict(max_pixels=limit))
        made = crop(crop.read(path, whole=False))
        expected = CentreCrop(64)
        assert torch.equal(
            made, expected(expected.read(tmp_path / 'a.png')))
        # The transforms of linear probes likewise.
        short = crop.short_side
        resized = ResizeImage(short)(LoadImage(
            max_pixels=limit, short_side=short)(dict(img_path=str(path))))
        assert (resized['img'] == resize_image(
            RGB, (short, short * WIDTH // HEIGHT))[..., ::-1]).all()
    with pytest.raises(TooLargeImage, match='set max_pixels=126000'):
        LoadImage(max_pixels=1000).load(dict(img_path=str(tmp_path / 'a.png')))


def pillow_png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


@pytest.mark.parametrize('orientation', [1, 6])
def test_windows_of_a_large_image(orientation, tmp_path):
    """`cmae predict --window`: the windows of the image decoded whole."""
    path = tmp_path / 'a.tif'
    path.write_bytes(tiff(SMOOTH, tile=(64, 64), photometric='rgb',
                          extratags=[(274, 'H', 1, orientation, True)]))
    whole = CentreCrop(32).read(path)
    reader = CentreCrop(32, dict(max_pixels=20_000))
    with pytest.raises(ValueError, match=r'max_pixels=126000 .*--window\)'):
        reader.read(path)
    large = reader.read(path, windows=True)
    assert isinstance(large, LargeImage)
    assert large.shape == whole.shape[:2]
    for y, x in ((0, 0), (130, 201), (268, 250)):
        assert (large[y:y + 48, x:x + 32] == whole[y:y + 48, x:x + 32]).all()
    assert (CentreCrop(32).read(path, windows=True) == whole).all()
    path.write_bytes(pillow(SMOOTH, 'JPEG'))
    with pytest.raises(ValueError, match='tiled TIFF file'):
        reader.read(path, windows=True)


@pytest.mark.parametrize('options', [
    dict(fill='mean'), dict(value_range='per_image', fill='mean')])
def test_windows_of_an_image_with_missing_pixels(options):
    array = SMOOTH.astype(np.float32)
    array[100:200, 100:200] = np.nan
    data, given = tiff(array, tile=(64, 64), photometric='rgb'), dict(
        channels=3, dtype='float32', **options)
    whole = decode_image(data, None, make_settings(**given))
    large = decode_windows(
        data, make_settings(max_pixels=60_000, **given), 'x.tif')
    assert np.allclose(large[90:150, 80:160], whole[90:150, 80:160],
                       rtol=1e-5)


def test_overviews_of_large_images(tmp_path):
    """Each level has a value of its own."""
    levels = [np.full((800 // 2**n, 1200 // 2**n), 10 * n + 10, 'uint8')
              for n in range(4)]
    inside, beside = io.BytesIO(), io.BytesIO()
    with tifffile.TiffWriter(inside) as file:  # as QuPath's
        file.write(levels[0], subifds=3, tile=(64, 64))
        for level in levels[1:]:
            file.write(level, subfiletype=1, tile=(64, 64))
        # A label is no overview.
        file.write(np.full((300, 300), 99, 'uint8'), subfiletype=1)
    with tifffile.TiffWriter(beside) as file:  # as GDAL's
        for number, level in enumerate(levels):
            file.write(level, subfiletype=int(number > 0), tile=(64, 64))
    for data in (inside.getvalue(), beside.getvalue()):
        for limit, window, size, expected in (
                (None, (0, 0, 800, 1200), 50, 10),
                (100_000, (0, 0, 800, 1200), 100, 40),
                (100_000, (0, 0, 800, 1200), 101, 30),
                (100_000, (100, 100, 400, 400), 100, 30),
                (100_000, (100, 100, 100, 100), 100, 10)):
            made = part(data, window, (size, size),
                        make_settings(channels=1, max_pixels=limit))
            assert (made == expected).all(), (limit, window, size)


def test_large_jpeg2000(tmp_path):
    rasterio = pytest.importorskip('rasterio')
    path = tmp_path / 'a.jp2'
    array = noise((600, 700), 'uint16', 4000)
    with rasterio.open(
            path, 'w', driver='JP2OpenJPEG', width=700, height=600, count=1,
            dtype='uint16', QUALITY=100, REVERSIBLE='YES', NBITS=15,
            BLOCKXSIZE=128, BLOCKYSIZE=128) as file:
        file.write(array[None])
    settings = make_settings(channels=1, dtype='uint16', max_pixels=100_000)
    for data in (path, path.read_bytes()):
        made = part(data, (50, 60, 200, 300), (200, 300), settings)
        assert (made[..., 0] == array[50:250, 60:360]).all()


SCRIPT = '''
import resource, sys
import numpy as np
from cmae_mm.datasets import LoadCanvas
from cmae_mm.evaluation.features import CentreCrop
load, crop = LoadCanvas(256), CentreCrop(224)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for seed in range(3):
    load(dict(img_path=sys.argv[1], view_seed=seed))
crop(crop.read(sys.argv[1], whole=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
'''


def test_memory_of_a_large_geotiff(tmp_path):
    """8000 x 8000 pixels, 192 MB: more than is decoded at once."""
    path = tmp_path / 'large.tif'
    side = 8000
    tile = noise((512, 512, 3), 'uint8', 256)
    tifffile.imwrite(
        path, (tile for _ in range(16**2)), shape=(side, side, 3),
        dtype='uint8', tile=(512, 512), photometric='rgb')
    assert path.stat().st_size > 180e6
    done = subprocess.run([sys.executable, '-c', SCRIPT, path],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 300_000  # in kilobytes


def test_stats_find_the_limit(tmp_path):
    array = np.zeros((5001, 5010), 'uint8')
    array[:100] = 7
    (tmp_path / 'a.png').write_bytes(pillow_png(array))
    found = measure_images(tmp_path, num_workers=0, channels=1)
    assert found['settings']['max_pixels'] == 26_000_000
    assert found['notes'][0].startswith(
        '1 images have more than 25,000,000 pixels: max_pixels=26000000 is')
    assert found['sizes']['height'] == [5001, 5001, 5001]
    for limit, error in ((26_000_000, ''), (25_055_009, '=25055010')):
        try:
            found = measure_images(
                tmp_path, num_workers=0, channels=1, max_pixels=limit)
            assert found['settings']['max_pixels'] == limit and not error
            assert not [n for n in found['notes'] if 'pixels' in n]
        except ValueError as said:
            assert error and error in str(said)
    # A large JPEG file needs no setting: it is read at a smaller scale.
    (tmp_path / 'a.png').unlink()
    Image.fromarray(array).save(tmp_path / 'a.jpg')
    found = measure_images(tmp_path, num_workers=0, channels=1)
    assert 'max_pixels' not in found['settings']
    assert found['sizes']['width'] == [5010, 5010, 5010]
    crop = CentreCrop(64, dict(channels=1))
    assert crop(crop.read(tmp_path / 'a.jpg', whole=False)).shape == (
        1, 64, 64)


def test_stats_of_parts(tmp_path):
    (tmp_path / 'a.tif').write_bytes(
        tiff(RGB, photometric='rgb', tile=(64, 64)))
    found = measure_images(tmp_path, num_workers=0, max_pixels=30_000)
    assert found['sizes']['height'][0] == HEIGHT and not found['notes']
    assert found['mean'] == pytest.approx(RGB.mean((0, 1)).tolist())
    wide = noise((100, 4000), 'uint8', 256)
    (tmp_path / 'a.tif').write_bytes(tiff(wide, tile=(64, 64)))
    found = measure_images(tmp_path, num_workers=0, max_pixels=140_000)
    assert found['sizes']['width'][0] == 4000
    assert any(note.startswith('1 images have more than 140,000 pixels; '
                               'their centre') for note in found['notes'])
    assert found['mean'][0] == pytest.approx(wide[:, 976:3024].mean())
