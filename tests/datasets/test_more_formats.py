"""Files of many formats, each written by its own library."""
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from helpers import ROOT
from image_files import noise, numpy, pillow, tiff
from images import photo
from PIL import Image, ImageOps

from cmae_mm.datasets.decode import (RGB, UndecodableImage, UnfitImage,
                                     decode_image, decode_resized,
                                     make_settings, read_image)
from cmae_mm.datasets.source import SourceError, open_source
from cmae_mm.datasets.stats import measure_images
from cmae_mm.dependencies import MissingLibrary

WHOLE = make_settings(channels=None, dtype=None)
WIDE = photo(48)[:32].copy()
DEEP = WIDE.astype('uint16') * 4  # of 10 bits


def whole(data, name='x'):
    """Decode with all channels, as stored."""
    return read_image(data, name, WHOLE)


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def need(name):
    """Skip a test where an optional library is missing."""
    return pytest.importorskip(name)


def need_pillow(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f'this Pillow does not write {kind}')


def test_gif_of_several_frames(tmp_path):
    frames = [Image.fromarray(photo(40, n)).quantize(64) for n in range(3)]
    file = io.BytesIO()
    frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:])
    (tmp_path / 'a.GIF').write_bytes(file.getvalue())
    expected = np.asarray(frames[0].convert('RGB'))
    raw = whole(file.getvalue())
    assert (raw.pixels == expected).all() and raw.is_animated
    found = measure_images(tmp_path, num_workers=0)
    assert 'of 1 animations only the first frame is used' in found['notes']
    # A palette with a transparent colour is colour and alpha.
    image = frames[0].copy()
    image.info['transparency'] = 3
    raw = whole(pillow(image, 'GIF', transparency=3))
    assert raw.alpha and set(np.unique(raw.pixels[..., 3])) == {0, 255}
    assert decode_image(pillow(image, 'GIF')).shape == (40, 40, 3)


def jpeg2000(bits, count):
    """Let rasterio write an image of some bits."""
    rasterio = need('rasterio')
    array = noise((40, 50), 'uint16', 2**bits)
    with rasterio.MemoryFile(ext='.jp2') as memory:
        with memory.open(
                driver='JP2OpenJPEG', width=50, height=40, count=count,
                dtype='uint16', QUALITY=100, REVERSIBLE='YES', NBITS=bits,
                crs='EPSG:32632', transform=rasterio.Affine(
                    10, 0, 5e5, 0, -10, 5e6)) as file:
            file.write(np.stack([array] * count))
        return array, memory.read()


def test_jpeg2000_of_8_bits():
    need_pillow('JPEG2000')
    for array in (WIDE, WIDE[..., 0], np.dstack([WIDE, WIDE[..., :1]])):
        data = pillow(array, 'JPEG2000', irreversible=False)
        assert (whole(data).pixels.squeeze() == array).all()


@pytest.mark.parametrize('bits', [12, 15, 16])
def test_jpeg2000_of_more_bits(bits):
    array, data = jpeg2000(bits, 5)
    raw = whole(data)
    assert raw.pixels.dtype == np.uint16 and not raw.alpha
    assert (raw.pixels == array[..., None]).all()


def test_jpeg2000_without_rasterio(monkeypatch):
    array, data = jpeg2000(12, 1)
    data = data[data.find(b'\xff\x4f\xff\x51'):]  # .j2k, without a container
    assert (whole(data).pixels[..., 0] == array).all()
    monkeypatch.setattr('cmae_mm.datasets.decode.maps.find_rasterio',
                        lambda: False)
    with pytest.raises(MissingLibrary, match=r'x is a JPEG 2000 file of 1 cha'
                       r'nnel\(s\) of 12 bits, which needs rasterio; install'):
        whole(data)


def test_exif_of_jpeg2000():
    """EXIF data in the box that ImageMagick and ExifTool write."""
    need_pillow('JPEG2000')
    data = pillow(WIDE, 'JPEG2000', irreversible=False)
    place = data.find(b'jp2c') - 4
    body = b'JpgTiffExif->JP2' + exif(6)[6:]
    box = (len(body) + 8).to_bytes(4, 'big') + b'uuid' + body
    made = whole(data[:place] + box + data[place:]).pixels
    assert (made == np.rot90(WIDE, -1)).all()


@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_avif(orientation):
    need_pillow('AVIF')
    data = pillow(WIDE, 'AVIF', quality=100, subsampling='4:4:4',
                  exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(
        Image.open(io.BytesIO(data))))
    assert (whole(data).pixels == expected).all()
    assert (decode_image(data, name='wrong.jpg')[..., ::-1] == expected).all()


def test_avif_of_10_bits():
    imagecodecs = need('imagecodecs')
    need_pillow('AVIF')
    for array in (DEEP, DEEP[..., 0], np.dstack([DEEP, DEEP[..., :1]])):
        data = imagecodecs.avif_encode(array, bitspersample=10)
        expected = imagecodecs.avif_decode(data)
        raw = whole(data)
        assert raw.pixels.dtype == np.uint16
        assert (raw.pixels.squeeze() == expected).all()
        assert raw.alpha == (array.shape[2:] == (4, ))


def test_heic():
    heif = need('pillow_heif')
    heif.register_heif_opener()
    data = pillow(WIDE, 'HEIF', quality=-1, exif=exif(6))
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert expected.shape == (48, 32, 3)  # upright already
    assert (whole(data).pixels == expected).all()
    deep = heif.from_bytes('RGB;16', (48, 32), (DEEP * 64).tobytes())
    file = io.BytesIO()
    deep.save(file, quality=-1)
    made = whole(file.getvalue()).pixels
    assert made.dtype == np.uint16 and 255 < made.max() < 1024
    scaled = np.asarray(heif.open_heif(file, convert_hdr_to_8bit=False))
    assert (made == scaled // 64).all()


def test_jpeg_xl():
    need('pillow_jxl')
    for array in (WIDE, WIDE[..., 0], np.dstack([WIDE, WIDE[..., :1]])):
        raw = whole(pillow(array, 'JXL', lossless=True))
        assert (raw.pixels.squeeze() == array).all()
    imagecodecs = need('imagecodecs')
    for array in (DEEP, DEEP[..., 0]):
        data = imagecodecs.jpegxl_encode(array, lossless=True)
        assert (whole(data).pixels.squeeze() == array).all()


@pytest.mark.parametrize('kind,package,mark', [
    ('HEIF', 'pillow-heif', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'),
    ('JXL', 'pillow-jxl-plugin', b'\0\0\0\x0cJXL \r\n\x87\n'),
    ('JXL', 'pillow-jxl-plugin', b'\xff\x0a')])
def test_missing_plugins_are_named(kind, package, mark, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    monkeypatch.setitem(sys.modules, 'pillow_jxl', None)
    monkeypatch.setattr(Image, 'OPEN', {
        k: v for k, v in Image.OPEN.items() if k not in ('HEIF', 'JXL')})
    with pytest.raises(MissingLibrary, match=(
            f'a.x is a file of {kind}, which needs a plugin .* `pip install '
            f'{package}`')):
        decode_image(mark + bytes(100), name='a.x')
    ending = '.heic' if kind == 'HEIF' else '.jxl'
    (tmp_path / f'a{ending}').write_bytes(mark)
    (tmp_path / 'b.png').write_bytes(pillow(WIDE, 'PNG'))
    assert f'skipped: 1 {ending}; {ending}: images that need `pip' \
        in open_source(tmp_path).describe()


def test_arrays_in_archives():
    def archive(**arrays):
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()
    for arrays in (dict(any=WIDE), dict(image=WIDE, mask=WIDE[..., 0])):
        assert (whole(archive(**arrays)).pixels == WIDE).all()
    with pytest.raises(UndecodableImage, match=(
            r'has 2 arrays \(a.npy, b.npy\), but must have one array, or one')
            ):
        whole(archive(a=WIDE, b=WIDE))
    with pytest.raises(UndecodableImage):
        whole(archive(a=np.array([dict(a=1)], dtype=object)))


@pytest.mark.parametrize('axes', [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_stacks_of_images(axes):
    stack = noise((5, 20, 30, 3), 'uint8', 256)
    data = numpy(stack.transpose(axes))
    with pytest.raises(UnfitImage, match=(
            "x has 5 images in a stack: set pages='channels' if.* or save eac"
            )):
        decode_image(data, name='x')
    made = decode_image(data, settings=make_settings(pages='first'))
    assert (made[..., ::-1] == stack[0]).all()
    made = decode_image(data, settings=make_settings(
        pages='channels', channels=15))
    assert (made == np.concatenate(stack, 2)).all()
    assert (decode_image(numpy(stack[:1]))[..., ::-1] == stack[0]).all()


@pytest.mark.parametrize('options', [
    {}, dict(progressive=True), dict(subsampling=0), dict(optimize=True)])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_jpeg_file_without_its_end(mode, options):
    """Of the end mark alone; a file that lacks more is broken."""
    image = Image.fromarray(photo(64)).convert(mode)
    data = pillow(image, 'JPEG', quality=90, **options)
    assert data[-2:] == b'\xff\xd9'
    expected = decode_image(data)
    for cut in (1, 2):
        assert (decode_image(data[:-cut]) == expected).all()
    for cut in range(3, len(data) - 300):
        with pytest.raises(UndecodableImage):
            decode_image(data[:-cut])


def geotiff(array, **kwargs):
    rasterio = need('rasterio')
    with rasterio.MemoryFile() as memory:
        try:
            with memory.open(
                    driver='GTiff', width=array.shape[1],
                    height=array.shape[0], count=array.shape[2],
                    dtype=array.dtype, **kwargs) as file:
                file.write(np.moveaxis(array, 2, 0))
        except Exception as error:
            pytest.skip(f'this GDAL does not write it: {error}')
        return memory.read()


@pytest.mark.parametrize('compress,options', [
    ('lerc', {}), ('lerc_deflate', {}), ('lerc_zstd', {}), ('zstd', {}),
    ('lzw', {}), ('webp', dict(WEBP_LOSSLESS=True, photometric='RGB')),
    ('webp', dict(WEBP_LOSSLESS=True))])
def test_compressions_of_8_bits(compress, options):
    data = geotiff(WIDE, compress=compress, **options)
    assert (whole(data).pixels == WIDE).all()


def dicom(pixels, sop='1.2.840.10008.5.1.4.1.1.2'):
    need('pydicom')
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    made.SOPClassUID, made.SOPInstanceUID = sop, generate_uid()
    if pixels is not None:
        made.Rows, made.Columns = pixels.shape
        made.SamplesPerPixel = 1
        made.PhotometricInterpretation = 'MONOCHROME2'
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 0
        made.PixelData = pixels.tobytes()
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_dicom_without_an_ending_or_an_image(tmp_path):
    image = noise((20, 30))
    for name in ('IM-0001', '1.2.840.113619.2.55', 'a.dcm', 'B.DCM',
                 'CT.0001.IMA'):
        (tmp_path / name).write_bytes(dicom(image))
    storage = '1.2.840.10008.5.1.4.1.1.'
    # Segmentations, doses and radiation images have pixels.
    for sop in ('66.4', '481.1', '481.2', '1', '77.1.6'):
        (tmp_path / f'{sop}.dcm').write_bytes(dicom(image, storage + sop))
    others = ('481.3', '481.5', '88.11', '88.67', '104.1', '11.1', '66.1',
              '9.1.1')
    for sop in others:
        (tmp_path / f'{sop}.dcm').write_bytes(dicom(None, storage + sop))
    (tmp_path / 'RTSTRUCT').write_bytes(dicom(None, storage + '481.3'))
    (tmp_path / 'notes').write_text('text')
    (tmp_path / 'brain.ima').write_text('of another kind')
    source = open_source(tmp_path)
    assert len(source) == 10
    for part in ('9 imageless DICOM objects (first: 104.1.dcm)',
                 '1 .ima', '1 other file (notes)'):
        assert part in source.describe()
    found = measure_images(tmp_path, num_workers=0)
    assert found['images'] == 10 and not found['broken_count']
    for index in range(len(source)):
        assert (whole(source.read(index)).pixels[..., 0] == image).all()


def test_files_with_the_ending_of_dicom(tmp_path):
    """Decoded as what they are."""
    colours = photo(20)
    for kind in ('PNG', 'JPEG'):
        data = pillow(colours, kind)
        assert (read_image(data, 'a.dcm', RGB).pixels
                == read_image(data, 'a', RGB).pixels).all()
    image = noise((20, 30))
    assert (read_image(dicom(image)[132:], 'a.dcm', RGB).pixels[..., 0]
            == image).all()
    with pytest.raises(UndecodableImage, match='not an image of a known'):
        read_image(b'text' * 100, 'a.dcm', RGB)
    with pytest.raises(UndecodableImage, match='git lfs pull'):
        read_image(b'version https://git-lfs.github.com/spec/v1\noid', 'a.jpg',
                   RGB)


def test_jpeg_files_of_several_pictures(tmp_path):
    first, second = photo(20, 1), photo(20, 2)
    for name in ('a.jpg', 'a.mpo'):
        Image.fromarray(first).save(
            tmp_path / name, 'MPO', save_all=True, quality=95,
            append_images=[Image.fromarray(second)])
    source = open_source(tmp_path)
    assert list(source.names) == ['a.jpg', 'a.mpo']
    for index in range(2):
        found = read_image(source.read(index), 'a', RGB).pixels
        assert np.abs(found.astype(int) - first).mean() < 10
        assert np.abs(found.astype(int) - second).mean() > 20


REFUSED = {'.nii.gz': 'script in docs/image-formats.md', '.svs': 'tiled TIFF',
           '.ndpi': 'tiled TIFF', '.mrxs': 'tiled TIFF', '.scn': 'tiled TIFF',
           '.mp4': 'ffmpeg', '.MOV': 'ffmpeg', '.cr2': 'dcraw',
           '.h5': 'numpy.save', '.zip': 'unpack them'}


def test_a_folder_of_what_is_not_read(tmp_path):
    for ending in REFUSED:
        (tmp_path / f'a{ending}').touch()
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    said = str(caught.value)
    assert '\n' not in said and said.startswith('no images below ')
    for ending, way in REFUSED.items():
        assert f'1 {ending.lower()}' in said and way in said
        with pytest.raises(FileNotFoundError, match=f'single file .*{way}'):
            open_source(tmp_path / f'a{ending}')
    assert said.count('tiled TIFF') == 1


def test_bands_of_a_scene(tmp_path):
    data = pillow(WIDE, 'PNG')
    scene = 'T32TNT_20200101T101021_'
    for name in (f'{scene}B02_10m.jp2', f'{scene}B03_10m.jp2',
                 f'{scene}B8A_20m.jp2', 'B04.jp2', 'B08.JP2',
                 'LC08_L1TP_B4.TIF', 'LC08_L1TP_B5.TIF',
                 # Neither bands nor scenes.
                 f'{scene}TCI_10m.jp2', 'other_B02.jp2', 'well_B02.tif',
                 'well_B03.tif', 'a.png'):
        (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path)
    assert list(source.names) == [
        f'{scene}TCI_10m.jp2', 'a.png', 'other_B02.jp2', 'well_B02.tif',
        'well_B03.tif']
    said = source.describe()
    assert 'skipped: 7 one-band scene files (first: B04.jp2)' in said
    assert said.count('`rio stack ') == 1


def test_the_command_that_stacks_bands(tmp_path):
    """As the description of the folder has it."""
    need('rasterio')
    arrays = []
    for band in ('B02', 'B03', 'B04'):
        array, data = jpeg2000(15, 1)
        (tmp_path / f'{band}.jp2').write_bytes(data)
        arrays.append(array)
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    command = re.search('`rio (stack [^`]*)`', str(caught.value))[1].split()
    script = 'from rasterio.rio.main import main_group; main_group()'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script, *command],
                   cwd=tmp_path, check=True)
    data = (tmp_path / 'SCENE.tif').read_bytes()
    assert (whole(data).pixels == np.dstack(arrays)).all()


@pytest.mark.parametrize('options', [
    {}, dict(nodata=5), dict(compress='deflate'), dict(compress='lzw')])
def test_tiles_that_gdal_leaves_out(options):
    rasterio = need('rasterio')
    from rasterio.windows import Window
    with rasterio.MemoryFile() as memory:
        with memory.open(
                driver='GTiff', width=200, height=200, count=3, dtype='uint8',
                tiled=True, blockxsize=64, blockysize=64, SPARSE_OK=True,
                photometric='RGB', **options) as file:
            file.write(np.full((3, 64, 64), 9, 'uint8'),
                       window=Window(64, 64, 64, 64))
            expected = file.read()
        data = memory.read()
    made = whole(data).pixels
    assert (made == np.moveaxis(expected, 0, 2)).all()
    part = decode_resized(data, lambda *_: ((50, 60, 99, 88), (99, 88)),
                          make_settings(fill=5))
    assert (part == made[50:149, 60:148]).all()


def test_the_script_for_volumes(tmp_path, monkeypatch):
    nibabel = need('nibabel')
    text = (ROOT / 'docs/image-formats.md').read_text()
    script = re.search(
        r'```python\n(import nibabel.*?)```', text, re.DOTALL)[1]
    volume = noise((30, 40, 5), 'int16', 3000)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)),
                 tmp_path / 'scan.nii.gz')
    monkeypatch.chdir(tmp_path)
    exec(script.replace('scans', '.'), {})
    source = open_source(tmp_path)
    assert len(source) == 5
    for index in range(5):
        assert (whole(source.read(index), 'a.npy').pixels[..., 0]
                == volume[..., index]).all()


def test_each_format_has_a_row():
    """The table of the documents has all endings, and no others."""
    from cmae_mm.datasets.listing import IMG_EXTENSIONS
    text = (ROOT / 'docs/image-formats.md').read_text()
    table = text.split('\n## ')[1].split('\n\n')[1].splitlines()
    found = {ending for row in table for ending in re.findall(
        r'`(\.\w+)`', row.split('|')[2])}
    assert found == {*IMG_EXTENSIONS, '.ima'}


def test_one_bit_and_other_odd_images():
    image = Image.fromarray(WIDE).convert('1')
    for kind in ('PNG', 'TIFF', 'BMP', 'GIF', 'PPM'):
        made = decode_image(pillow(image, kind), settings=make_settings(
            channels=1))
        assert (made[..., 0] == np.asarray(image) * 255).all(), kind
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as file:
        for number in range(3):
            file.write(photo(20, number), photometric='rgb', metadata=None)
    with pytest.raises(UnfitImage, match='x has 3 pages'):
        decode_image(pages.getvalue(), name='x')
    assert (whole(tiff(WIDE, photometric='rgb')).pixels == WIDE).all()
