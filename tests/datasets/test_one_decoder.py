"""One decoder: the same pixels for training, evaluation and a PIL image."""
import io
import logging
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import tifffile
import torch
from helpers import SHARED
from image_files import noise, numpy, opencv, pillow, tiff
from images import photo
from PIL import Image, ImageOps
from test_dicom_and_geotiff import geotiff

from cmae_mm.datasets import LoadImage
from cmae_mm.datasets.decode import (UnfitImage, decode_image, make_settings,
                                     read_image)
from cmae_mm.evaluation.data import eval_pipeline
from cmae_mm.evaluation.features import CentreCrop

WHOLE = make_settings(channels=None, dtype=None)


def rgb(data, name='x', **wanted):
    """Decode to RGB."""
    return decode_image(data, None, make_settings(**wanted), name)[..., ::-1]


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def segment(marker, body):
    return b'\xff' + bytes([marker]) + struct.pack(
        '>H', len(body) + 2) + body


def xmp(attributes=b'', length=0):
    return (b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/'
            b'"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-'
            b'ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
            b' ' + attributes + b'/></rdf:RDF></x:xmpmeta>' + b' ' * length)


def jpeg_with(*segments):
    data = pillow(photo(48)[:30], 'JPEG', quality=95)
    return data[:2] + b''.join(segments) + data[2:]


TURNED = segment(0xe1, exif(6))
ICC = segment(0xe2, b'ICC_PROFILE\0\1\1' + bytes(60_000))
# A thumbnail has an orientation of its own, in Photoshop's segment.
THUMBNAIL = segment(0xed, b'Photoshop 3.0\0' + jpeg_with(TURNED)[:5000])
WIDE = Image.fromarray(photo(48)[:30])
ORIENTED = {
    'exif.jpg': jpeg_with(TURNED),
    'after 6 kB of XMP.jpg': jpeg_with(segment(0xe1, xmp(length=6000)),
                                       TURNED),
    'after an ICC profile.jpg': jpeg_with(ICC, ICC, TURNED),
    'after both, filled.jpg': jpeg_with(ICC, segment(0xe1, xmp()), b'\xff',
                                        TURNED),
    'two of them.jpg': jpeg_with(TURNED, segment(0xe1, exif(3))),
    'in a thumbnail alone.jpg': jpeg_with(THUMBNAIL),
    'XMP alone.jpg': jpeg_with(segment(0xe1, xmp(b'tiff:Orientation="6"'))),
    'damaged.jpg': jpeg_with(segment(0xe1, b'Exif\0\0II*\0\xff\xff\xff\xff')),
    'out of range.jpg': jpeg_with(segment(0xe1, exif(77))),
    'exif.png': pillow(WIDE, 'PNG', exif=exif(6)),
    'exif.webp': pillow(WIDE, 'WEBP', lossless=True, exif=exif(6)),
    'tag.tif': tiff(photo(48)[:30], photometric='rgb',
                    extratags=[(274, 'H', 1, 6, True)]),
    'exif.mpo': pillow(WIDE, 'MPO', save_all=True, append_images=[WIDE],
                       exif=exif(6)),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ORIENTED)
def test_one_orientation_for_all_formats(name, tmp_path):
    """That of Pillow, for training, evaluation and PIL images."""
    data = ORIENTED[name]
    expected = np.asarray(ImageOps.exif_transpose(
        Image.open(io.BytesIO(data))).convert('RGB')).astype(int)
    turned = not name.startswith(('in a thumbnail', 'damaged', 'out of'))
    assert expected.shape == ((48, 30, 3) if turned else (30, 48, 3))
    path = tmp_path / name
    path.write_bytes(data)
    loaded = LoadImage()(dict(img_path=str(path)))['img'][..., ::-1]
    crop = CentreCrop(24)
    opened = crop.read(Image.open(path))[..., ::-1]
    for made in (rgb(data), loaded, crop.read(path)[..., ::-1], opened):
        assert made.shape == expected.shape
        assert np.abs(made - expected).max() <= 8  # two decoders of JPEG


def premultiplied(rgba):
    straight = rgba.astype(float)
    straight[..., :3] *= straight[..., 3:] / np.iinfo(rgba.dtype).max
    return np.rint(straight).astype(rgba.dtype)


RGBA = np.dstack([photo(60), np.tile(np.linspace(60, 255, 60), (60, 1))]
                 ).astype('uint8')


def test_one_rule_for_alpha(tmp_path):
    """Colours are as they are stored, without alpha, in every format."""
    files = {
        'a.png': pillow(RGBA, 'PNG'),
        'b.tif': pillow(RGBA, 'TIFF'),
        'c.tif': pillow(RGBA, 'TIFF', compression='tiff_lzw'),
        'd.tif': tiff(RGBA, photometric='rgb', extrasamples=['unassalpha']),
        'e.tif': tiff(RGBA, photometric='rgb', extrasamples=['unassalpha'],
                      compression='zlib', tile=(16, 16), byteorder='>'),
        'f.webp': pillow(RGBA, 'WEBP', lossless=True, exact=True),
        'g.bmp': pillow(RGBA, 'BMP'),
        'h.png': opencv(RGBA, '.png'),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        loaded = LoadImage()(dict(img_path=str(path)))['img'][..., ::-1]
        for made in (rgb(data), loaded):
            assert (made == RGBA[..., :3]).all(), name
        if name != 'g.bmp':
            kept = rgb(data, channels=4)[..., ::-1]
            assert (kept == RGBA).all(), name


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_colours_multiplied_by_alpha_are_divided(dtype):
    rgba = RGBA if dtype == 'uint8' else RGBA.astype('uint16') * 257
    multiplied = premultiplied(rgba)
    white = 1
    if dtype == 'float32':
        white, multiplied = 65535, multiplied.astype('float32') / 65535
    data = tiff(multiplied, photometric='rgb', extrasamples=['assocalpha'])
    made = decode_image(data, settings=make_settings(dtype=dtype))
    made = made[..., ::-1] if dtype == 'uint8' else made
    # Rounded twice: the less opaque, the coarser.
    slack = np.ceil(np.iinfo(rgba.dtype).max / rgba[..., 3:] / 2 + 1)
    assert (np.abs(made * white - rgba[..., :3].astype(float))
            <= slack).all()


def test_features_of_a_picture_agree_in_all_formats(tmp_path):
    """Crops of every evaluation, from bytes, files and PIL images."""
    crop = CentreCrop(32)
    expected = crop(crop.decode(pillow(RGBA, 'PNG'), 'x')).float()
    for kind, options in (('TIFF', {}), ('WEBP', dict(lossless=True,
                                                      exact=True))):
        data = pillow(RGBA, kind, **options)
        assert (crop(crop.decode(data, 'x')) == expected).all()
    data = tiff(premultiplied(RGBA), photometric='rgb',
                extrasamples=['assocalpha'])
    made = crop(crop.decode(data, 'x')).float()
    assert torch.cosine_similarity(
        made.flatten(), expected.flatten(), dim=0) > 0.9999


def test_alpha_is_data_unless_it_is_a_mask():
    """GDAL calls a fourth band of 8 bits alpha: NAIP's near infra-red."""
    naip = noise((40, 50, 4), 'uint8', 256)
    file = geotiff(naip)  # as GDAL writes it by default
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        assert opened.pages.first.extrasamples == (2, )
    with pytest.raises(UnfitImage, match=r'x\.tif has 4 channel.s. of uint8'):
        rgb(file, 'x.tif')
    assert (rgb(file, channels=4)[..., ::-1] == naip).all()
    assert not read_image(file, 'x.tif', WHOLE).alpha
    for mask in (naip[..., 3] % 2 * 255, np.full((40, 50), 255, 'uint8')):
        masked = np.dstack([naip[..., :3], mask])
        made = rgb(geotiff(masked), 'x.tif')
        assert (made == naip[..., :3]).all()
    # 16 bits, for which GDAL has to be told.
    deep = noise((40, 50, 4))
    file = geotiff(deep, photometric='rgb', alpha='yes')
    made = rgb(file, channels=4, dtype='uint16')[..., ::-1]
    assert (made == deep).all()
    with pytest.raises(UnfitImage, match='4 channel'):
        rgb(file, dtype='uint16')


def pnm(kind, values, maximum, comment=''):
    height, width = values.shape[:2]
    head = f'P{kind}\n{comment}{width} {height}\n{maximum}\n'.encode()
    if kind in (2, 3):
        return head + ' '.join(map(str, values.ravel())).encode()
    return head + values.astype('>u2' if maximum > 255 else 'u1').tobytes()


@pytest.mark.parametrize('kind', [2, 3, 5, 6])
def test_pnm_files_of_any_range(kind):
    """Up to 255 the maximum is white; above, values are kept."""
    shape = (21, 33, 3) if kind in (3, 6) else (21, 33)
    channels = 3 if kind in (3, 6) else 1
    for maximum in (1, 100, 255):
        data = pnm(kind, noise(shape, high=maximum + 1), maximum, '# a\n')
        expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
        assert (rgb(data) == expected).all()
        assert expected.max() == 255
    for maximum in (256, 1000, 4095, 65535):
        values = noise(shape, high=maximum + 1)
        made = decode_image(pnm(kind, values, maximum), settings=make_settings(
            channels=channels, dtype='uint16'))
        assert (made.reshape(shape) == values).all()


# Modes that files have and that PIL images of these files have.
MODES = {
    '1': WIDE.convert('1'), 'L': WIDE.convert('L'),
    'LA': Image.fromarray(RGBA[..., [0, 3]]), 'P': WIDE.quantize(64),
    'RGB': WIDE, 'RGBA': Image.fromarray(RGBA),
    'I;16': Image.fromarray(noise((30, 48))),
    'CMYK': WIDE.convert('CMYK'), 'F': WIDE.convert('F'),
}


@pytest.mark.parametrize('mode', MODES)
def test_a_pil_image_is_read_as_its_file(mode):
    image = MODES[mode]
    data = pillow(image, 'TIFF' if mode in ('CMYK', 'F') else 'PNG')
    settings = {'I;16': dict(channels=1, dtype='uint16'),
                'F': dict(channels=1, dtype='float32')}.get(mode, {})
    for wanted in (settings, dict(settings, channels=4)):
        if wanted.get('channels') == 4 and mode not in ('RGBA', 'CMYK'):
            continue
        crop = CentreCrop(24, wanted)
        expected = crop.read(data)
        for given in (image, Image.open(io.BytesIO(data)), io.BytesIO(data),
                      bytearray(data)):
            assert (crop.read(given) == expected).all()
    array = np.asarray(image.convert('RGB') if mode in 'LAPCMYKRGBA'
                       else image)
    if mode in ('RGB', 'I;16', 'F'):
        assert (crop.read(array) == expected).all()


def test_palettes_with_transparency():
    palette = WIDE.quantize(16)
    data = pillow(palette, 'PNG', transparency=3)
    expected = np.asarray(palette.convert('RGB'))
    assert (rgb(data) == expected).all()
    kept = rgb(data, channels=4)[..., ::-1]
    assert (kept == np.asarray(
        Image.open(io.BytesIO(data)).convert('RGBA'))).all()
    assert (kept[..., 3] == 0).any()


def test_a_png_of_16_bits_with_a_transparent_colour():
    colours = noise((12, 10, 3), high=65536)
    colours[:3] = (300, 301, 302)
    data = opencv(colours, '.png')
    body = b'tRNS' + struct.pack('>3H', 300, 301, 302)
    chunk = struct.pack('>I', 6) + body + struct.pack('>I', zlib.crc32(body))
    data = data[:33] + chunk + data[33:]
    made = decode_image(data, settings=make_settings(
        channels=4, dtype='uint16'))
    assert (made[..., :3] == colours).all()
    assert (made[:3, :, 3] == 0).all() and (made[3:, :, 3] == 65535).all()
    made = decode_image(data, settings=make_settings(dtype='uint16'))
    assert (made == colours).all()


@pytest.mark.parametrize('options', [
    dict(photometric='rgb', byteorder='>'),
    dict(photometric='rgb', tile=(16, 16)),
    dict(photometric='rgb', rowsperstrip=1, compression='zlib'),
])
def test_tiffs_of_every_layout(options):
    colours = photo(48)
    assert (rgb(tiff(colours, **options)) == colours).all()
    planes = tiff(np.moveaxis(colours, 2, 0).copy(),
                  **dict(options, planarconfig='separate'))
    assert (rgb(planes) == colours).all()


def test_tiffs_of_other_colours():
    for compression in ('jpeg', 'tiff_lzw', 'packbits'):
        data = pillow(WIDE, 'TIFF', compression=compression)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
        assert (rgb(data) == expected).all()
    grey = photo(48)[..., 0]
    white = tiff(grey, photometric='miniswhite')
    assert (rgb(white) == 255 - grey[..., None]).all()
    deep = tiff(grey.astype('uint16') * 16, photometric='miniswhite')
    made = decode_image(deep, settings=make_settings(
        channels=1, dtype='uint16'))[..., 0]
    assert (made == 65535 - grey.astype('uint16') * 16).all()
    # Lab colours are no red, green and blue.
    lab = tiff(photo(48), photometric='cielab')
    with pytest.raises(ValueError, match='CIELAB of 8 bits, which are not'):
        rgb(lab)


NODATA = {'u16_nan': ('uint16', 'nan'), 'u8_minus9999': ('uint8', '-9999'),
          'u8_256': ('uint8', '256'), 'i16_float': ('int16', '3.5'),
          'empty': ('uint8', ' '), 'text': ('uint8', 'none')}


def test_nodata_that_does_not_fit_is_reported_once(monkeypatch, caplog,
                                                   capfd):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.decode.image._logged', set())
    monkeypatch.setattr('cmae_mm.datasets.decode.image.print_log',
                        lambda text, **kwargs: said.append(text))
    grey = photo(48)[..., 0]
    with caplog.at_level(logging.DEBUG):
        for dtype, text in NODATA.values():
            data = tiff(grey.astype(dtype), photometric='minisblack',
                        extratags=[(42113, 's', 0, text, True)])
            for _ in range(3):
                raw = read_image(data, 'x.tif', WHOLE)
                assert raw.missing is None or not raw.missing.any()
                assert (raw.pixels[..., 0] == grey).all()
    assert len(said) == 1 and "missing pixels by 'nan'" in said[0]
    assert not [r for r in caplog.records if r.name.startswith('tifffile')]
    assert 'TiffPage' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize('dtype,text,hit', [
    ('uint64', str(2**64 - 1), 2**64 - 1), ('float32', '0.1', 0.1),
    ('int16', '-9999', -9999), ('int16', '-9999.0', -9999),
    ('float32', '-3.4028234663852886e+38', -3.4028234663852886e+38)])
def test_nodata_that_fits_is_missing(dtype, text, hit):
    values = noise((20, 30), dtype, 90)
    values[:4] = np.array(hit).astype(dtype)
    data = tiff(values, photometric='minisblack',
                extratags=[(42113, 's', 0, text, True)])
    missing = read_image(data, 'x.tif', WHOLE).missing[..., 0]
    assert missing[:4].all() and not missing[4:].any()


def test_messages_of_libraries_are_shown_once(monkeypatch, recwarn):
    """Pillow's of damaged TIFF tags, rasterio's and tifffile's likewise."""
    said = []
    monkeypatch.setattr('cmae_mm.datasets.decode.image._logged', set())
    monkeypatch.setattr('cmae_mm.datasets.decode.image.print_log',
                        lambda text, **kwargs: said.append(text))

    def warn(data, settings):
        warnings.warn(f'of {len(data)} bytes', RuntimeWarning, stacklevel=2)
        logging.getLogger('tifffile').warning('a damaged tag')
        return original(data, settings)

    from cmae_mm.datasets.decode import tiff as reader
    original = reader.read_tiff
    monkeypatch.setattr(reader, 'read_tiff', warn)
    for side in (20, 30, 40):
        assert (rgb(tiff(photo(side)), f'{side}.tif') == photo(side)).all()
    assert len(said) == 2 and not recwarn.list
    assert said[0].startswith('20.tif: a damaged tag (tifffile; further')
    assert said[1].startswith('20.tif: of ') and 'RuntimeWarning' in said[1]
    # Others' warnings are left alone.
    with pytest.warns(UserWarning, match='of others'):
        warnings.warn('of others', UserWarning, stacklevel=1)


def test_evaluation_sees_the_pixels_of_training(tmp_path):
    """Every file of the awkward kinds, through both ways to its pixels."""
    from mmpretrain.registry import TRANSFORMS
    maker = SHARED / 'tools/make_inputs.py'
    if not maker.exists():
        pytest.skip(f'{maker} is not here')
    subprocess.run(
        [sys.executable, str(maker), str(tmp_path), 'tiff_kinds',
         'jpeg_orientation', 'naip', 'nodata_tags', 'other_formats'],
        check=True, capture_output=True)
    load = TRANSFORMS.build(eval_pipeline(32)[0])
    counts = dict.fromkeys(('same', 'refused'), 0)
    for path in sorted(p for p in tmp_path.rglob('*') if p.is_file()):
        try:
            expected = decode_image(path.read_bytes(), name=str(path))
        except ValueError as error:
            with pytest.raises(type(error)):
                load(dict(img_path=str(path)))
            counts['refused'] += 1
            continue
        assert (load(dict(img_path=str(path)))['img'] == expected).all(), path
        counts['same'] += 1
    assert counts['same'] > 15 and counts['refused'] > 10


def test_invalid_images_raise_one_sentence(tmp_path):
    crop = CentreCrop(24)
    for given, error, said in (
            ('x' * 5000, FileNotFoundError, 'the image file .x+. cannot be'),
            (tmp_path / 'none.jpg', FileNotFoundError, 'none.jpg. cannot be'),
            (tmp_path, FileNotFoundError, 'cannot be read: is a folder'),
            ('a\0b', FileNotFoundError, 'cannot be read'),
            ([WIDE, WIDE], TypeError, 'expected one image.* but got list'),
            (None, TypeError, 'but got NoneType'),
            (torch.zeros(3, 8, 8), TypeError, 'but got Tensor'),
            (b'nothing', ValueError, 'the image cannot be decoded .it is not'),
            (b'', ValueError, 'it is empty'),
            (np.zeros((3, 4, 5, 6)), ValueError, 'has 3 images in a stack'),
            (np.zeros((8, 8, 4), 'uint8'), ValueError, 'has 4 channel'),
            (photo(8) / 255., ValueError, "dtype='uint8' cannot hold"),
            (io.BytesIO(b'text'), ValueError, 'cannot be decoded')):
        with pytest.raises(error, match=said) as caught:
            crop.read(given)
        assert len(str(caught.value)) < 600
    cut = Image.open(io.BytesIO(pillow(WIDE, 'PNG')[:300]))
    with pytest.raises(ValueError, match='the image cannot be decoded'):
        crop.read(cut)
    assert numpy(photo(8))
