"""Images that mmcv's loader would change, before the first step."""
import numpy as np
import pytest
from image_files import noise, opencv, pillow, tiff
from images import photo
from mmcv.transforms import Compose, LoadImageFromFile
from mmengine.dataset import BaseDataset
from PIL import Image

from cmae_mm.datasets import LoadImage
from cmae_mm.dense.dataset_checks import check_images_are_kept

RGBA = np.dstack([photo(40), noise((40, 40), 'uint8', 256)])


class Files(BaseDataset):
    """Files without annotations."""

    def load_data_list(self):
        return [dict(img_path=str(path)) for path in self.paths]

    def __init__(self, paths, loader):
        self.paths = paths
        super().__init__()
        self.pipeline = Compose([loader])


def check(folder, files, loader=None):
    paths = []
    for name, data in files.items():
        path = folder / name
        path.write_bytes(data)
        paths.append(path)
    check_images_are_kept(
        'train', Files(paths, loader or LoadImageFromFile()))


def turned(kind, **options):
    exif = Image.Exif()
    exif[0x0112] = 6
    return pillow(Image.fromarray(photo(40)[:24]), kind, exif=exif, **options)


KEPT = {
    'a.jpg': pillow(photo(40), 'JPEG', quality=95),
    'b.png': pillow(photo(40), 'PNG'),
    'c.png': pillow(photo(40)[..., 0].copy(), 'PNG'),
    'd.png': pillow(RGBA, 'PNG'),
    'e.tif': tiff(photo(40), photometric='rgb'),
    'f.jpg': turned('JPEG', quality=95),
    'g.bmp': pillow(photo(40), 'BMP'),
    'h.png': pillow(Image.fromarray(photo(40)).quantize(64), 'PNG'),
    'i.jpg': pillow(Image.fromarray(photo(40)).convert('CMYK'), 'JPEG'),
}
CHANGED = {
    '12 bits.tif': (tiff(noise((40, 50))), 'has values from .* of uint16'),
    '12 bits.png': (pillow(noise((40, 50)), 'PNG'), 'of uint16, which dtype'),
    '8 of 16 bits.png': (pillow(noise((40, 50), high=200), 'PNG'),
                         'its alpha, range or orientation would be lost'),
    'colours.png': (opencv(noise((40, 50, 3)), '.png'), 'of uint16'),
    'alpha.tif': (tiff(RGBA, photometric='rgb', extrasamples=['unassalpha']),
                  'alpha, range or orientation'),
    'pages.tif': (tiff(np.stack([photo(40)] * 2), photometric='rgb'),
                  'has 2 pages'),
    'range.pgm': (b'P5 40 40 100\n' + noise((40, 40), 'uint8', 101).tobytes(),
                  'alpha, range or orientation'),
}


def test_ordinary_images_pass(tmp_path):
    check(tmp_path, KEPT)


@pytest.mark.parametrize('name', CHANGED)
def test_files_that_would_change_are_named(name, tmp_path):
    data, said = CHANGED[name]
    with pytest.raises(ValueError, match=(
            rf"the train data: mmcv's image loader would change .*/{name}: "
            rf'.*{said}.*convert the images to 8-bit')):
        check(tmp_path, {**KEPT, name: data})
    # Where another loader keeps it there is nothing to refuse.
    check(tmp_path, {name: data}, LoadImage(
        channels=1, dtype='uint16', pages='first'))


def test_loader_of_16_bits_passes(tmp_path):
    deep = {'a.png': pillow(noise((40, 50)), 'PNG'),
            'b.png': opencv(noise((40, 50, 3)), '.png')}
    check(tmp_path, deep, LoadImageFromFile(color_type='unchanged'))


def test_sample_of_many_images_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr('cmae_mm.dense.dataset_checks.MOST_IMAGES', 3)
    deep = CHANGED['12 bits.png'][0]
    for place, found in ((0, True), (10, True), (20, True), (4, False)):
        files = {f'{n:02d}.png': KEPT['b.png'] for n in range(21)}
        files[f'{place:02d}.png'] = deep
        if found:
            with pytest.raises(ValueError, match=f'{place:02d}.png'):
                check(tmp_path, files)
        else:
            check(tmp_path, files)
