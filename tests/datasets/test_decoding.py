"""Decoding of image files."""
import io

import numpy as np
import pytest
from images import photo
from PIL import Image, ImageOps

from cmae_mm.datasets import LoadCanvas
from cmae_mm.datasets.decode import TooLargeImage, decode_image, make_settings


def encode(image, kind='JPEG', **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def bad_inputs():
    """One file of each awkward kind: name, bytes, and whether it is usable."""
    rgb = Image.fromarray(photo(40))
    jpeg = encode(rgb, quality=95)
    deep = Image.fromarray(
        photo(40)[..., 0].astype(np.uint16) * 257)
    upright = Image.fromarray(photo(40)[:20])
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = rgb.convert('L')
    return [
        ('truncated.jpg', jpeg[:len(jpeg) // 2], False),
        ('zero.jpg', b'', False),
        ('text.jpg', b'not an image', False),
        ('cmyk.jpg', encode(rgb.convert('CMYK'), quality=95), True),
        ('deep.png', encode(deep, 'PNG'), True),
        ('palette.png', encode(rgb.quantize(256), 'PNG'), True),
        ('grey.jpg', encode(grey, quality=95), True),
        ('rgba.png', encode(rgb.convert('RGBA'), 'PNG'), True),
        ('exif.jpg', encode(upright, quality=95, exif=exif), True),
        ('one.png', encode(rgb.crop((0, 0, 1, 1)), 'PNG'), True),
        ('long.jpg', encode(rgb.resize((20000, 16)), quality=95), True),
        ('huge.jpg', encode(rgb.resize((20000, 4000)), quality=50), True),
        ('webp.webp', encode(rgb, 'WEBP', lossless=True), True),
    ]


@pytest.mark.parametrize(
    'name, data, usable', bad_inputs(), ids=[n for n, _, _ in bad_inputs()])
def test_awkward_files(name, data, usable, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.datasets.transforms.print_log',
                        lambda text, **kwargs: said.extend(
                            [text] * ('cannot be decoded' in text)))
    path = tmp_path / name
    path.write_bytes(data)
    result = LoadCanvas(32)(dict(img_path=str(path), view_seed=1))
    if not usable:
        assert result is None and len(said) == 1 and name in said[0]
        return
    assert not said
    assert result['img'].shape == (32, 32, 3)
    assert result['img'].dtype == np.uint8


def test_awkward_files_are_decoded_rightly():
    files = {name: data for name, data, _ in bad_inputs()}
    image = photo(40)[..., ::-1].astype(int)

    def decoded(name):
        return decode_image(files[name]).astype(int)

    for name in ('rgba.png', 'webp.webp'):
        assert (decoded(name) == image).all(), name
    assert np.abs(decoded('cmyk.jpg') - image).mean() < 8
    assert np.abs(decoded('palette.png') - image).mean() < 12
    # 16 bits become the upper 8, grey becomes colour
    assert (decoded('deep.png') == photo(40)[..., :1]).all()
    grey = decoded('grey.jpg')
    assert (grey[..., 0] == grey[..., 1]).all()
    # a quarter turn clockwise stands upright
    upright = decoded('exif.jpg')
    assert upright.shape == (40, 20, 3)
    turned = np.rot90(photo(40)[:20], -1)[..., ::-1]
    assert np.abs(upright - turned).mean() < 6
    assert decoded('one.png').shape == (1, 1, 3)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientations_are_pillows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(
        Image.fromarray(photo(40)[:24]), quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode_image(data)[..., ::-1].astype(int)
    assert np.abs(ours - np.asarray(expected)).mean() < 1


def test_large_jpegs_are_decoded_small():
    data = encode(Image.fromarray(photo(400)), quality=95)
    assert decode_image(data, shrink_to=201).shape == (400, 400, 3)
    half = decode_image(data, shrink_to=200)
    assert half.shape == (200, 200, 3)
    expected = Image.fromarray(photo(400)).resize((200, 200),
                                                  Image.Resampling.BOX)
    difference = half.astype(int) - np.asarray(expected)[..., ::-1]
    assert np.abs(difference).mean() < 2
    assert decode_image(data, shrink_to=50).shape == (50, 50, 3)


def test_images_beyond_the_limit_are_refused():
    at_limit, below = (make_settings(max_pixels=n) for n in (1600, 1599))
    for kind in ('PNG', 'JPEG', 'TIFF', 'GIF', 'AVIF', 'JPEG2000'):
        data = encode(Image.fromarray(photo(40)), kind)
        assert decode_image(data, settings=at_limit).shape == (40, 40, 3)
        with pytest.raises(TooLargeImage, match=(
                '40x40 pixels are more than max_pixels=1,599; set max_pixels='
                r'1600 \(--max-pixels')):
            decode_image(data, settings=below)
    for wrong in (0, -1, 1.5, True, 'all'):
        with pytest.raises(ValueError, match='max_pixels must be a whole num'):
            make_settings(max_pixels=wrong)


def test_large_files_of_little_content_are_refused(recwarn):
    """Attacks by files that are large when they are decoded."""
    bomb = encode(Image.new('L', (30000, 30000)), 'PNG')
    assert len(bomb) < 2**20
    with pytest.raises(TooLargeImage, match='30000x30000 pixels are more'):
        decode_image(bomb)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    file = io.BytesIO()
    np.savez_compressed(file, np.zeros((30000, 30000), 'u1'))
    with pytest.raises(TooLargeImage):
        decode_image(file.getvalue())
