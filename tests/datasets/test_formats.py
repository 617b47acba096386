"""Images of any depth and number of channels: decoded without loss, or an
error."""
import numpy as np
import pytest
import tifffile
from helpers import DEEP
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import noise, numpy, opencv, pillow, planar, tiff
from images import photo
from PIL import Image

from cmae_mm.datasets import LoadCanvas, LoadImage, LoadImageOrSkip
from cmae_mm.datasets.decode import (RGB, UndecodableImage, UnfitImage,
                                     decode_image, make_settings)
from cmae_mm.dependencies import MissingLibrary


def decode(data, name='x.tif', **wanted):
    return decode_image(data, None, make_settings(**wanted), name)


# What was lost silently once: the file, the settings that take it, and what
# the refusal without them says.
LOST = {
    '12 bits in a TIFF file': (
        tiff(noise((40, 50))), dict(channels=1, dtype=DEEP),
        rf'x\.tif has values from \d+ to 40\d\d of uint16.*dtype=.{DEEP}.'),
    '12 bits in a PNG file': (
        pillow(noise((40, 50)), 'PNG'), dict(channels=1, dtype=DEEP),
        f'dtype=.{DEEP}., or value_range'),
    'floats from 0 to 1': (
        tiff(noise((40, 50), 'float32') / 4096), dict(channels=1,
                                                      dtype='float32'),
        'of float32, which dtype=.uint8. cannot hold; set dtype=.float32.'),
    'five channels': (
        tiff(noise((64, 64, 5), 'uint8', 256)), dict(channels=5),
        r'5 channel\(s\) of uint8, but channels=3; set channels=5, or bands'),
    'five channels, as numpy has them': (
        tiff(noise((64, 64, 5), 'uint8', 256), metadata={}),
        dict(channels=5), 'set channels=5'),
    'five planes': (
        planar(noise((64, 64, 5), 'uint8', 256)), dict(channels=5),
        'set channels=5'),
    '16 bits in colour': (
        opencv(noise((40, 50, 3)), '.png'), dict(dtype=DEEP),
        f'dtype=.{DEEP}.'),
    'infra-red beside colours': (
        tiff(noise((40, 50, 4), 'uint8', 256), photometric='rgb',
             extrasamples=[0]), dict(channels=4), 'set channels=4'),
}


def test_selected_channels_must_exist():
    with pytest.raises(UnfitImage, match=r'channels=2; set channels=5, or '
                       r'bands=\(\.\.\.\) to choose 2 of them'):
        decode(tiff(noise((40, 50, 5), 'uint8', 256)), channels=2)
    with pytest.raises(UnfitImage, match=r'channels=6; set channels=5 \('):
        decode(tiff(noise((40, 50, 5), 'uint8', 256)), channels=6)


@pytest.mark.filterwarnings('error')
def test_ranges_and_halves_do_not_warn():
    half = numpy(noise((40, 50), 'float16', 200).round())
    assert (decode(half, channels=1, dtype='uint16')[..., 0]
            == noise((40, 50), 'float16', 200).round()).all()
    image = tiff(noise((40, 50)))
    one = decode(image, channels=1, value_range=(0, 4095))
    assert (decode(image, channels=1, value_range=([0], [4095])) == one).all()
    assert (one[..., 0] == np.rint(noise((40, 50)) / 4095 * 255)).all()


def test_an_empty_file_is_called_empty():
    with pytest.raises(UndecodableImage, match='it is empty'):
        decode(b'', 'x.jpg')
    with pytest.raises(UndecodableImage, match='it is empty'):
        decode(b'', 'x.dcm', channels=1, dtype='float32')


@pytest.mark.parametrize('name', LOST)
def test_truncated_files_raise_or_are_complete(name, tmp_path):
    data, wanted, said = LOST[name]
    path = tmp_path / 'x.tif'
    path.write_bytes(data)
    for loader in (LoadCanvas(16), LoadImage(), LoadImageOrSkip()):
        with pytest.raises(UnfitImage, match=said):
            loader(dict(img_path=str(path)))
    made = LoadImage(**wanted)(dict(img_path=str(path)))['img']
    if b'NUMPY' in data or name != '12 bits in a PNG file' and (
            'colour' not in name):
        written = tifffile.imread(path)
        if name == 'five planes':
            written = np.moveaxis(written, 0, 2)
        assert (made.reshape(written.shape) == written).all()
    assert made.dtype == wanted.get('dtype', 'uint8')
    assert len(np.unique(made)) > 250
    canvas = LoadCanvas(16, **wanted)(dict(img_path=str(path)))['img']
    assert canvas.shape == (16, 16, wanted.get('channels', 3))
    assert canvas.dtype == made.dtype


def files_of(array):
    """Write an array (H, W, C) by every writer that can."""
    channels, dtype = array.shape[2], array.dtype
    grey = array[..., 0] if channels == 1 else array
    yield 'tiff', tiff(array if channels > 1 else grey)
    yield 'planar tiff', planar(array) if channels > 1 else tiff(grey)
    yield 'bare tiff', tiff(grey, metadata={})
    yield 'deflated tiff', tiff(
        grey, photometric='minisblack', compression='zlib',
        planarconfig='contig' if channels > 1 else None,
        predictor=dtype.kind != 'f')
    yield 'npy', numpy(array)
    if channels > 1:
        yield 'npy, channels first', numpy(np.moveaxis(array, 2, 0))
    if channels in (1, 3, 4) and dtype in ('uint8', 'uint16'):
        yield 'png', opencv(grey, '.png')
    if channels in (1, 3) and dtype in ('uint8', 'uint16'):
        yield 'opencv tiff', opencv(grey, '.tiff')  # LZW
        yield 'pnm', opencv(grey, '.ppm' if channels == 3 else '.pgm')


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(['uint8', 'uint16', 'float32']),
       st.sampled_from([1, 2, 3, 4, 5, 16]), st.integers(2, 2**16),
       st.integers(0, 2**32 - 1))
def test_decoding_keeps_every_value(dtype, channels, levels, seed):
    """And so the number of distinct levels, of any writer's file."""
    shape = (21, 33, channels)
    array = noise(shape, high=levels, seed=seed)
    if dtype == 'uint8':
        array = array % 256
    array = array.astype(dtype)
    if dtype == 'float32':
        array = array / np.float32(levels) - np.float32(0.3)
    for kind, file in files_of(array):
        made = decode(file, channels=channels, dtype=dtype)
        if channels == 3 and dtype == 'uint8':
            made = made[..., ::-1]
        assert made.dtype == dtype and made.shape == shape, kind
        assert (made == array).all(), kind


def test_more_channels_are_kept():
    array = noise((70, 80, 64), 'uint16')
    assert (decode(tiff(array), channels=64, dtype='uint16') == array).all()


@settings(deadline=None)
@given(st.sampled_from(['int16', 'uint8', 'uint16', 'int32', 'uint32',
                        'float16', 'float64']), st.integers(-30000, 30000))
def test_other_types_keep_their_levels_or_are_refused(dtype, offset):
    values = np.arange(100.).reshape(10, 10) + offset
    limits = np.iinfo(dtype) if dtype[0] in 'ui' else np.finfo('float16')
    array = values.clip(limits.min, limits.max).astype(dtype)
    for wanted in ('uint8', 'uint16', 'float32'):
        try:
            made = decode(numpy(array), channels=1, dtype=wanted)
        except UnfitImage:
            assert array.min() < 0 or array.max() > np.iinfo(wanted).max
            continue
        assert made.dtype == wanted
        assert (made[..., 0] == array).all()


def test_float64_is_rounded_only_within_tolerance():
    fine = np.random.default_rng(0).random((20, 20))
    made = decode(numpy(fine), channels=1, dtype='float32')[..., 0]
    assert (made == fine.astype('float32')).all()
    with pytest.raises(UnfitImage, match="lost in dtype='float32'; set"):
        decode(numpy(fine + 1e9), channels=1, dtype='float32')
    made = decode(numpy(fine + 1e9), channels=1, dtype='float32',
                  value_range=(1e9, 1e9 + 1))[..., 0]
    np.testing.assert_allclose(made, fine, atol=2e-7)


def test_a_range_of_values_is_mapped_to_the_types():
    array = np.array([[0, 1000, 2000, 4095, 5000]], 'uint16')
    for dtype, expected in (('uint8', [0, 62, 125, 255, 255]),
                            ('uint16', [0, 16004, 32007, 65535, 65535]),
                            ('float32', np.minimum(array[0] / 4095, 1))):
        made = decode(tiff(array), channels=1, dtype=dtype,
                      value_range=(0, 4095))
        np.testing.assert_allclose(made[0, :, 0], expected, rtol=1e-6)
    made = decode(tiff(array), channels=1, dtype='float32',
                  value_range='per_image')
    np.testing.assert_allclose(made[0, :, 0], array[0] / 5000, rtol=1e-6)
    flat = decode(numpy(np.full((4, 4), 7.)), channels=1,
                  value_range='per_image')
    assert (flat == 0).all()
    # each channel by its own range
    made = decode(tiff(np.full((4, 4, 2), 60, 'uint16')), channels=2,
                  value_range=([0, 60], [100, 70]))
    assert (made[0, 0] == [153, 0]).all()


@pytest.mark.parametrize('factor', [257, 256])
def test_eight_bits_widened_to_16_are_narrowed(factor):
    grey = photo(40)[..., 0].astype('uint16')
    made = decode(tiff(grey * factor), channels=1)
    assert (made[..., 0] == grey).all()
    with pytest.raises(UnfitImage):
        decode(tiff(grey * factor + 1), channels=1)


def test_grey_and_colour():
    grey, colour = photo(40)[..., 0], photo(40)
    # As always: repeated.
    assert (decode(pillow(grey, 'PNG')) == grey[..., None]).all()
    assert (decode(tiff(grey)) == grey[..., None]).all()
    # Grey saved as colours is grey; colours are not.
    for file in (pillow(np.stack([grey] * 3, 2), 'PNG'), pillow(grey, 'PNG'),
                 pillow(Image.fromarray(grey).quantize(256), 'PNG')):
        assert (decode(file, channels=1)[..., 0] == grey).all()
    for file in (pillow(grey, 'JPEG'),
                 pillow(np.stack([grey] * 3, 2), 'JPEG')):
        made = decode(file, channels=1)
        assert made.shape == (40, 40, 1)
        assert (made == decode(file)[..., :1]).all()
    for kind in ('PNG', 'JPEG'):
        with pytest.raises(UnfitImage, match='has 3 .*, but channels=1'):
            decode(pillow(colour, kind), channels=1)
    # Colours in another type keep the file's order.
    made = decode(pillow(colour, 'PNG'), dtype='float32')
    assert (made == colour).all() and made.dtype == 'float32'
    made = decode(pillow(colour, 'PNG'), channels=2, bands=[2, 0])
    assert (made == colour[..., [2, 0]]).all()
    with pytest.raises(UnfitImage, match='has 3 channel.*asks for number 3'):
        decode(pillow(colour, 'PNG'), channels=1, bands=[3])


def test_alpha_palettes_and_cmyk(monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.decode.image._logged', set())
    monkeypatch.setattr('cmae_mm.datasets.decode.image.print_log',
                        lambda text, **kwargs: said.append(text))
    rgba = np.dstack([photo(40), noise((40, 40), 'uint8', 256)])
    la = rgba[..., [0, 3]]
    deep = opencv(noise((40, 40, 4)), '.png')
    for file in (pillow(rgba, 'PNG'), tiff(rgba, photometric='rgb',
                                           extrasamples=['unassalpha'])):
        assert (decode(file, channels=4) == rgba).all()
        assert (decode(file)[..., ::-1] == rgba[..., :3]).all()
    file = pillow(la, 'PNG')
    assert (decode(file, channels=2) == la).all()
    assert (decode(file, channels=1) == la[..., :1]).all()
    assert (decode(file) == la[..., :1]).all()
    assert decode(deep, dtype='uint16').shape == (40, 40, 3)
    # Said once, not for each.
    assert len(said) == 1 and 'x.tif has an alpha channel' in said[0]
    palette = Image.fromarray(photo(40)).quantize(64)
    made = decode(pillow(palette, 'PNG'))[..., ::-1]
    assert (made == np.asarray(palette.convert('RGB'))).all()
    cmyk = Image.fromarray(photo(40)).convert('CMYK')
    for kind in ('TIFF', 'JPEG'):
        file = pillow(cmyk, kind)
        assert decode(file).shape == (40, 40, 3)
        four = decode(file, channels=4)
        assert four.shape == (40, 40, 4)
        if kind == 'TIFF':
            assert (four == np.asarray(cmyk)).all()


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_first_frame_of_an_animation_is_used_and_logged(
        kind, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.decode.image.print_log',
                        lambda text, **kwargs: said.append(text))
    frames = [Image.fromarray(photo(40, seed)) for seed in range(3)]
    for count in (1, 3):
        path = tmp_path / f'{count}.png'
        path.write_bytes(pillow(
            frames[0], kind, save_all=True, append_images=frames[1:count]))
        for load in (LoadCanvas(16), LoadImage(), LoadImage(dtype='float32')):
            monkeypatch.setattr('cmae_mm.datasets.decode.image._logged', set())
            said.clear()
            made = load(dict(img_path=str(path)))['img']
            assert len(said) == (count > 1), said
            assert not said or '3.png is an animation' in said[0]
    expected = np.asarray(frames[0]).astype(int)
    assert made.shape == (40, 40, 3)
    assert np.abs(made - expected).mean() < 12


def test_pages():
    array = noise((5, 40, 50))
    last = dict(channels=5, dtype='uint16')
    expected = np.moveaxis(array, 0, 2)
    # Channels by the file's own words.
    for kwargs in (dict(imagej=True, metadata=dict(axes='CYX')),
                   dict(ome=True, metadata=dict(axes='CYX'))):
        assert (decode(tiff(array, **kwargs), **last) == expected).all()
    for kwargs in (dict(imagej=True, metadata=dict(axes='ZYX')),
                   dict(metadata=None, photometric='minisblack')):
        file = tiff(array, **kwargs)
        with pytest.raises(UnfitImage, match="has 5 pages: set pages='chan"):
            decode(file, **last)
        assert (decode(file, pages='channels', **last) == expected).all()
        first = decode(file, pages='first', channels=1, dtype='uint16')
        assert (first[..., 0] == array[0]).all()
    # A document of ordinary pages, and one with a thumbnail.
    page = Image.fromarray(photo(40))
    document = pillow(page, 'TIFF', save_all=True, append_images=[page])
    with pytest.raises(UnfitImage, match='has 2 pages'):
        decode(document)
    assert (decode(document, pages='first')[..., ::-1] == photo(40)).all()


def test_the_first_of_many_pages_is_no_large_image():
    """Other pages are neither decoded nor counted."""
    stack = noise((40, 100, 90))
    settings = dict(channels=1, dtype='uint16', max_pixels=20_000)
    for data in (tiff(stack, photometric='minisblack'),
                 tiff(stack, photometric='minisblack', tile=(32, 32)),
                 tiff(stack, photometric='minisblack', imagej=True,
                      metadata=dict(axes='ZYX'))):
        assert (decode_image(data, None, make_settings(
            pages='first', **settings))[..., 0] == stack[0]).all()
        with pytest.raises(UndecodableImage, match='80 bytes are more than'):
            decode_image(data, None, make_settings(
                pages='channels', **{**settings, 'channels': 40}))


def test_overviews_are_left_out(tmp_path):
    full, small = noise((40, 50, 5)), noise((20, 25, 5))
    with tifffile.TiffWriter(tmp_path / 'x.tif') as file:
        kwargs = dict(photometric='minisblack', planarconfig='contig',
                      metadata=None)
        file.write(full, subfiletype=0, **kwargs)
        file.write(small, subfiletype=1, **kwargs)
    made = decode((tmp_path / 'x.tif').read_bytes(), channels=5,
                  dtype='uint16')
    assert (made == full).all()
    with tifffile.TiffWriter(tmp_path / 'x.tif') as file:
        file.write(full, **kwargs)
        file.write(small, **kwargs)
    data = (tmp_path / 'x.tif').read_bytes()
    with pytest.raises(UnfitImage, match='1 page.* of another size'):
        decode(data, channels=5, dtype='uint16')
    assert (decode(data, channels=5, dtype='uint16', pages='first') ==
            full).all()


def test_orientation_and_white_as_zero():
    array = noise((20, 30))
    file = tiff(array, extratags=[(274, 'H', 1, 6, True)])
    made = decode(file, channels=1, dtype='uint16')
    assert (made[..., 0] == np.rot90(array, -1)).all()
    file = tiff(array, photometric='miniswhite')
    made = decode(file, channels=1, dtype='uint16')
    assert (made[..., 0] == 65535 - array).all()


def test_missing_pixels_are_filled_or_refused():
    array = np.arange(24, dtype='float32').reshape(4, 6)
    array[0, 0] = np.nan
    array[1, 1] = np.inf
    file = numpy(array)
    with pytest.raises(UnfitImage, match="x.tif has missing pixels.*fill='m"):
        decode(file, channels=1, dtype='float32')
    made = decode(file, channels=1, dtype='float32', fill=-5)[..., 0]
    assert made[0, 0] == made[1, 1] == -5 and made[2, 0] == 12
    made = decode(file, channels=1, dtype='float32', fill='mean')[..., 0]
    assert made[0, 0] == pytest.approx(array[np.isfinite(array)].mean())
    with pytest.raises(UndecodableImage, match='pixels are missing'):
        decode(numpy(array * np.nan), channels=1, dtype='float32',
               fill='mean')


@pytest.mark.parametrize('file,said', [
    (numpy(np.zeros(5)), r'shape \(5,\) is not an image'),
    (numpy(np.zeros((2, 2, 3, 4, 5))), 'is not an image'),
    (numpy(np.zeros((70, 80, 90))), 'at most 64 channels'),
    (numpy(np.zeros((4, 4), complex)), 'of the type complex128'),
    (numpy(np.array([[{}]], object)), 'allow_pickle'),
    (numpy(noise((40, 50)))[:300], 'ValueError'),
    (tiff(noise((40, 50, 5)))[:2000], ''),
    (pillow(noise((40, 50)), 'PNG')[:300], ''),
])
def test_invalid_images_are_reported(file, said):
    with pytest.raises(UndecodableImage, match=said):
        decode(file, channels=1, dtype='uint16')


def test_an_array_of_two_readings_is_refused():
    file = numpy(np.zeros((5, 40, 5)))
    with pytest.raises(UnfitImage, match='the channel axis is ambiguous'):
        decode(file, channels=5, dtype='float32')


def test_missing_image_libraries_are_named(monkeypatch):
    """LZW, which tifffile reads with imagecodecs and others without."""
    file = opencv(noise((40, 50, 3)), '.tiff')
    wanted = dict(dtype='uint16')
    by_rasterio = decode(file, **wanted)
    monkeypatch.setattr('cmae_mm.datasets.decode.tiff.find_rasterio',
                        lambda: False)
    assert (decode(file, **wanted) == by_rasterio).all()
    assert (by_rasterio == noise((40, 50, 3))).all()
    monkeypatch.setattr('cmae_mm.datasets.decode.tiff._read_by_opencv',
                        lambda *args: None)
    if not _has_imagecodecs():
        with pytest.raises(MissingLibrary,
                           match='x.tif has a com.*`pip install imagecodecs`'):
            decode(file, **wanted)


def _has_imagecodecs():
    from importlib.util import find_spec
    return find_spec('imagecodecs') is not None


@pytest.mark.parametrize('given_,said', [
    (dict(channels=65), 'channels must be a whole number from 1 to 64'),
    (dict(dtype='int16'), 'dtype must be one of uint8, uint16, float32'),
    (dict(value_range=(5, 5)), 'value_range must be two finite numbers'),
    (dict(value_range='image'), "or 'per_image'"),
    (dict(channels=2, value_range=([1, 2, 3], 9)), 'for each of 2 channels'),
    (dict(bands=[0, 1]), r'bands=\(0, 1\) has 2 entries, but channels=3'),
    (dict(bands=[-1, 0, 1]), 'bands must be numbers of channels, from 0'),
    (dict(fill='median'), "fill must be a number or 'mean'"),
    (dict(window=(40, 0)), "window must be .centre, width. or 'file'"),
    (dict(window='file', value_range=(0, 1)), 'set one of them'),
    (dict(pages='all'), 'pages must be one of channels, first'),
])
def test_wrong_settings_are_refused(given_, said):
    for build in (make_settings, LoadImage, lambda **s: LoadCanvas(8, **s)):
        with pytest.raises(ValueError, match=said):
            build(**given_)


def test_an_old_torch_has_no_uint16(monkeypatch):
    monkeypatch.delattr('torch.uint16', raising=False)
    with pytest.raises(ValueError, match="torch 2.3 or newer.*set dtype='fl"):
        LoadCanvas(16, dtype='uint16')


def test_the_defaults_are_ordinary_colours():
    assert make_settings() == RGB and RGB.is_bgr
    assert not make_settings(dtype='uint16').is_bgr
