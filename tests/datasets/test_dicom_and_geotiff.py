"""DICOM and GeoTIFF files, written by pydicom and rasterio."""
import importlib.util
import io
import warnings

import numpy as np
import pytest
from image_files import noise, tiff

from cmae_mm.datasets import LoadCanvas
from cmae_mm.datasets.decode import (UndecodableImage, UnfitImage,
                                     decode_image, make_settings)
from cmae_mm.datasets.stats import measure_images
from cmae_mm.dependencies import MissingLibrary

FLOAT = dict(channels=1, dtype='float32')


def decode(data, name='x.dcm', **wanted):
    return decode_image(data, None, make_settings(**wanted), name)


def dicom(array, bits=12, mark=True, **tags):
    """Let pydicom write an image, of the tags given beside."""
    pydicom = pytest.importorskip('pydicom')
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = (
        pydicom.uid.SecondaryCaptureImageStorage)
    file.SOPInstanceUID = '1.2.3'
    file.Rows, file.Columns = array.shape[-2:]
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = 'MONOCHROME2'
    file.BitsAllocated = 8 * array.itemsize
    file.BitsStored, file.HighBit = bits, bits - 1
    file.PixelRepresentation = int(array.dtype.kind == 'i')
    file.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    target = io.BytesIO()
    pydicom.dcmwrite(target, file, enforce_file_format=mark)
    return target.getvalue()


def test_jpeg_of_12_bits_needs_a_library():
    """It is no damaged file, which training would skip."""
    pydicom = pytest.importorskip('pydicom')
    if importlib.util.find_spec('pylibjpeg'):
        pytest.skip('pylibjpeg is installed')
    file = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGExtended12Bit
    file.PixelData = pydicom.encaps.encapsulate([b'\xff\xd8\xff\xc1'])
    target = io.BytesIO()
    file.save_as(target)
    with pytest.raises(MissingLibrary, match=r'x.dcm has .*pylibjpeg\[all\]'):
        decode(target.getvalue(), **FLOAT)


STORED = noise((30, 40))
CT = dict(RescaleSlope=1, RescaleIntercept=-1024)


def test_values_are_the_modalitys():
    made = decode(dicom(STORED), channels=1, dtype='uint16')
    assert (made[..., 0] == STORED).all()
    # Hounsfield units, and the file without its mark
    for file in (dicom(STORED, **CT), dicom(STORED, mark=False, **CT)):
        made = decode(file, **FLOAT)
        assert (made[..., 0] == STORED.astype(int) - 1024).all()
    made = decode(dicom(STORED, RescaleSlope=0.5, RescaleIntercept=3),
                  **FLOAT)
    assert (made[..., 0] == STORED * 0.5 + 3).all()
    signed = (STORED.astype(int) - 2048).astype('int16')
    assert (decode(dicom(signed), **FLOAT)[..., 0] == signed).all()


def test_mismatched_keys_are_named(tmp_path):
    path = tmp_path / 'scan.dcm'
    path.write_bytes(dicom(STORED, **CT))
    with pytest.raises(UnfitImage, match=r'scan\.dcm has values from -10'):
        LoadCanvas(16, channels=1)(dict(img_path=str(path)))
    made = LoadCanvas(16, channels=1, window=(40, 400))(
        dict(img_path=str(path)))['img']
    assert made.dtype == 'uint8' and made.shape == (16, 16, 1)


@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
def test_windows_are_pydicoms(function):
    pydicom = pytest.importorskip('pydicom')
    tags = dict(CT, WindowCenter=[40., 300.], WindowWidth=[400., 1500.],
                VOILUTFunction=function)
    file = dicom(STORED, **tags)
    from pydicom.pixels import apply_modality_lut, apply_windowing
    read = pydicom.dcmread(io.BytesIO(file))
    seen = apply_windowing(
        apply_modality_lut(read.pixel_array, read), read)
    # pydicom gives the range of the modality's values
    seen = (seen + 1024) / 4095
    made = decode(file, window='file', **FLOAT)[..., 0]
    np.testing.assert_allclose(made, seen, atol=1e-6)
    narrow = decode(file, window='file', channels=1)[..., 0]
    np.testing.assert_allclose(narrow / 255, seen, atol=0.5 / 255 + 1e-6)
    given = decode(file, window=(40, 400), **FLOAT)[..., 0]
    if function == 'LINEAR':
        assert (given == made).all()


def test_a_file_without_a_window_is_refused():
    with pytest.raises(UnfitImage, match='x.dcm has no window, but'):
        decode(dicom(STORED), window='file', **FLOAT)


def test_a_table_as_a_window():
    pydicom = pytest.importorskip('pydicom')
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    values = (np.arange(4096.)**2 / 256).astype('uint16')
    table.LUTData = values.tobytes()
    file = dicom(STORED, VOILUTSequence=pydicom.Sequence([table]))
    made = decode(file, window='file', **FLOAT)[..., 0]
    np.testing.assert_allclose(made, values[STORED] / 65535, atol=1e-6)


def test_white_where_values_are_low():
    file = dicom(STORED, PhotometricInterpretation='MONOCHROME1')
    made = decode(file, channels=1, dtype='uint16')[..., 0]
    assert (made == 4095 - STORED).all()
    file = dicom(STORED, PhotometricInterpretation='MONOCHROME1', **CT)
    made = decode(file, **FLOAT)[..., 0]
    assert (made == -1024 + 3071 - (STORED.astype(int) - 1024)).all()
    windowed = decode(file, window=(1000, 500), **FLOAT)
    plain = decode(dicom(STORED, **CT), window=(1000, 500), **FLOAT)
    np.testing.assert_allclose(windowed, 1 - plain, atol=1e-6)


def test_colours_palettes_frames_and_padding():
    colours = noise((30, 40, 3), 'uint8', 256)
    made = decode(dicom(
        colours[..., 0], 8, SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation='RGB', PixelData=colours.tobytes()))
    assert (made[..., ::-1] == colours).all()
    frames = noise((4, 30, 40))
    file = dicom(frames, NumberOfFrames=4)
    with pytest.raises(UnfitImage, match='x.dcm has 4 frames: set pages='):
        decode(file, **FLOAT)
    made = decode(file, channels=4, dtype='uint16', pages='channels')
    assert (made == np.moveaxis(frames, 0, 2)).all()
    made = decode(file, channels=1, dtype='uint16', pages='first')
    assert (made[..., 0] == frames[0]).all()
    padded = STORED.copy()
    padded[:5] = 4095
    file = dicom(padded, PixelPaddingValue=4095)
    assert (decode(file, **FLOAT)[:5] == 4095).all()
    assert (decode(file, fill=7, **FLOAT)[:5] == 7).all()


def test_a_file_without_an_image_and_a_missing_library(monkeypatch):
    with pytest.raises(UndecodableImage, match='without an image'):
        decode(b'\0' * 128 + b'DICM' + b'\0' * 40, **FLOAT)
    import importlib.util
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec',
        lambda name: None if name in ('pydicom', 'rasterio') else real(name))
    with pytest.raises(MissingLibrary, match=r'x\.dcm is a DICOM file, which '
                       r'needs pydicom; install it with `pip install -e '
                       r"'\.\[dicom\]'`"):
        decode(dicom(STORED), **FLOAT)


def test_a_window_over_other_files_is_noted(tmp_path):
    (tmp_path / 'a.tif').write_bytes(tiff(STORED))
    (tmp_path / 'b.dcm').write_bytes(dicom(STORED, **CT))
    found = measure_images(tmp_path, num_workers=0, window=(40, 400))
    assert any('window is for DICOM files; the values of 1 other' in note
               for note in found['notes'])
    assert not any('window' in note for note in measure_images(
        tmp_path, num_workers=0)['notes'])

FRAMES = noise((3, 30, 40))


def group(slope=None, intercept=0., window=None, real=None):
    """Make the functional groups of a frame."""
    pydicom = pytest.importorskip('pydicom')
    made = pydicom.Dataset()
    if slope is not None:
        part = pydicom.Dataset()
        part.RescaleSlope, part.RescaleIntercept = slope, intercept
        part.RescaleType = 'HU'
        made.PixelValueTransformationSequence = [part]
    if window is not None:
        part = pydicom.Dataset()
        part.WindowCenter, part.WindowWidth = window
        made.FrameVOILUTSequence = [part]
    if real is not None:
        made.RealWorldValueMappingSequence = real
    return made


def mapping(slope, intercept, **tags):
    pydicom = pytest.importorskip('pydicom')
    made = pydicom.Dataset()
    made.RealWorldValueFirstValueMapped = 0
    made.RealWorldValueLastValueMapped = 4095
    made.RealWorldValueSlope = slope
    made.RealWorldValueIntercept = intercept
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def frames_of(shared=None, own=None, stored=FRAMES, **tags):
    """Write a multi-frame file with functional groups."""
    if shared is not None:
        tags['SharedFunctionalGroupsSequence'] = [shared]
    if own is not None:
        tags['PerFrameFunctionalGroupsSequence'] = own
    return dicom(stored, NumberOfFrames=len(stored), **tags)


def test_each_frame_has_its_own_units():
    """As pydicom applies a modality's values to a data set of one frame."""
    from pydicom import Dataset
    from pydicom.pixels import apply_rescale
    slopes = [(1, -1024), (0.5, 3), (2, 0)]
    expected = []
    for stored, (slope, intercept) in zip(FRAMES, slopes):
        single = Dataset()
        single.RescaleSlope, single.RescaleIntercept = slope, intercept
        expected.append(apply_rescale(stored, single))
    file = frames_of(own=[group(*s) for s in slopes],
                     shared=group(7, 7))
    made = decode(file, channels=3, dtype='float32', pages='channels')
    np.testing.assert_array_equal(made, np.moveaxis(expected, 0, 2))
    made = decode(file, pages='first', **FLOAT)
    np.testing.assert_array_equal(made[..., 0], expected[0])
    # Shared by all frames, or of the file itself.
    for file in (frames_of(shared=group(1, -1024), own=[group()] * 3),
                 frames_of(**CT)):
        made = decode(file, channels=3, dtype='float32', pages='channels')
        assert (made == np.moveaxis(FRAMES, 0, 2).astype(int) - 1024).all()
    with pytest.raises(UnfitImage, match='has 3 frames: set pages='):
        decode(file, **FLOAT)


def test_each_frame_has_its_own_window():
    windows = [(100, 300), (2000, 500), (3000, 4000)]
    file = frames_of(shared=group(1, -1024),
                     own=[group(window=w) for w in windows])
    made = decode(file, channels=3, window='file', pages='channels',
                  dtype='float32')
    for number, window in enumerate(windows):
        alone = decode(dicom(FRAMES[number], **CT), window=window, **FLOAT)
        np.testing.assert_allclose(made[..., number], alone[..., 0])
    with pytest.raises(UnfitImage, match='has no window, but'):
        decode(frames_of(shared=group(1, 0)), pages='first', window='file',
               **FLOAT)


def test_real_world_values():
    """They are the units of a file that has no others."""
    file = frames_of(shared=group(real=[mapping(0.25, 10)]))
    made = decode(file, pages='first', **FLOAT)[..., 0]
    assert (made == FRAMES[0] * 0.25 + 10).all()
    one = dicom(STORED, RealWorldValueMappingSequence=[mapping(0.5, 1)])
    assert (decode(one, **FLOAT)[..., 0] == STORED * 0.5 + 1).all()
    # Hounsfield units come first, and a window is in their units.
    both = frames_of(shared=group(1, -1024, real=[mapping(0.25, 10)]))
    made = decode(both, pages='first', **FLOAT)[..., 0]
    assert (made == FRAMES[0].astype(int) - 1024).all()
    windowed = decode(file, pages='first', window=(1000, 500), **FLOAT)
    plain = decode(dicom(FRAMES[0]), window=(1000, 500), **FLOAT)
    assert (windowed == plain).all()
    several = frames_of(shared=group(real=[mapping(1, 0), mapping(2, 0)]))
    with pytest.raises(UnfitImage, match='x.dcm has several real world value'):
        decode(several, pages='first', **FLOAT)


def test_doses_floats_and_tables():
    pydicom = pytest.importorskip('pydicom')
    doses = frames_of(Modality='RTDOSE', DoseGridScaling='0.125')
    made = decode(doses, channels=3, dtype='float32', pages='channels')
    assert (made == np.moveaxis(FRAMES, 0, 2) * 0.125).all()
    values = (STORED / 100).astype('float32')
    file = dicom(STORED.astype('uint32'), 32, BitsAllocated=32)
    opened = pydicom.dcmread(io.BytesIO(file))
    for tag in ('PixelData', 'BitsStored', 'HighBit', 'PixelRepresentation'):
        delattr(opened, tag)
    opened.FloatPixelData = values.tobytes()
    target = io.BytesIO()
    pydicom.dcmwrite(target, opened)
    made = decode(target.getvalue(), **FLOAT)
    assert (made[..., 0] == values).all()
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    squares = (np.arange(4096.)**2 / 256).astype('uint16')
    table.LUTData = squares.tobytes()
    table.ModalityLUTType = 'US'
    file = dicom(STORED, ModalityLUTSequence=[table])
    made = decode(file, channels=1, dtype='uint16')
    assert (made[..., 0] == squares[STORED]).all()


def test_bits_beside_the_stored_ones():
    """Overlays in the upper bits are no values; other layouts are refused."""
    made = decode(dicom(STORED | 0xA000), channels=1, dtype='uint16')
    assert (made[..., 0] == STORED).all()
    signed = (STORED.astype(int) - 2048).astype('int16')
    dirty = ((signed.view('uint16') & 0x0fff) | 0x3000).view('int16')
    assert (decode(dicom(dirty), **FLOAT)[..., 0] == signed).all()
    with pytest.raises(UndecodableImage, match='12 stored bits end at bit 15'):
        decode(dicom(STORED << 4, HighBit=15), **FLOAT)


@pytest.mark.parametrize('kind', ['YBR_FULL', 'YBR_FULL_422', 'planes',
                                  'PALETTE COLOR', 'YBR_PARTIAL_422'])
def test_colours_are_pydicoms(kind):
    pydicom = pytest.importorskip('pydicom')
    colours = noise((30, 40, 3), 'uint8', 256)
    tags = dict(SamplesPerPixel=3, PlanarConfiguration=0,
                PhotometricInterpretation=kind, PixelData=colours.tobytes())
    if kind == 'planes':
        tags.update(PhotometricInterpretation='RGB', PlanarConfiguration=1)
    elif kind == 'YBR_FULL_422':
        tags['PixelData'] = colours.reshape(-1)[:30 * 40 * 2].tobytes()
    elif kind == 'PALETTE COLOR':
        tags = dict(PhotometricInterpretation=kind)
        for number, colour in enumerate(('Red', 'Green', 'Blue')):
            tags[f'{colour}PaletteColorLookupTableDescriptor'] = [256, 0, 8]
            tags[f'{colour}PaletteColorLookupTableData'] = np.roll(
                np.arange(256, dtype='uint8'), number * 7).tobytes()
    file = dicom(colours[..., 0], 8, **tags)
    if kind == 'YBR_PARTIAL_422':
        with pytest.raises(UndecodableImage, match='YBR_PARTIAL_422., are'):
            decode(file)
        return
    opened = pydicom.dcmread(io.BytesIO(file))
    expected = opened.pixel_array
    if kind == 'PALETTE COLOR':
        expected = pydicom.pixels.apply_color_lut(expected, opened)
    assert (decode(file)[..., ::-1] == expected).all()


def test_padding_within_a_window_has_the_value_that_is_given():
    padded = STORED.astype('int16') - 1000
    padded[:5] = -2000
    file = dicom(padded, 16, PixelPaddingValue=-2000)
    made = decode(file, fill=-1000, window=(0, 4000), **FLOAT)[..., 0]
    alone = decode(dicom(np.full((4, 4), -1000, 'int16'), 16),
                   window=(0, 4000), **FLOAT)[0, 0, 0]
    np.testing.assert_allclose(made[:5], alone)
    assert (made >= 0).all() and (made <= 1).all()
    mean = decode(file, fill='mean', window=(0, 4000), **FLOAT)[..., 0]
    np.testing.assert_allclose(mean[:5], mean[5:].mean(), rtol=1e-5)

def geotiff(array, mask=None, **profile):
    """Let rasterio write an image (H, W, C) with a place on the Earth."""
    rasterio = pytest.importorskip('rasterio')
    from rasterio.transform import from_origin
    height, width, count = array.shape
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.MemoryFile() as memory:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), memory.open(
                    driver='GTiff', height=height, width=width, count=count,
                    dtype=array.dtype, crs='EPSG:32633',
                    transform=from_origin(5e5, 5e6, 10, 10),
                    **profile) as file:
                file.write(np.moveaxis(array, 2, 0))
                if mask is not None:
                    file.write_mask(mask)
            return memory.read()


@pytest.mark.parametrize('profile', [
    dict(), dict(interleave='band'), dict(compress='lzw'),
    dict(compress='deflate', predictor=2), dict(compress='zstd'),
    dict(interleave='band', compress='lzw', tiled=True, blockxsize=16,
         blockysize=16), dict(bigtiff='yes'),
])
@pytest.mark.parametrize('channels', [1, 4, 13])
def test_bands_are_rasterios(profile, channels):
    array = noise((40, 50, channels))
    file = geotiff(array, **profile)
    made = decode(file, 'x.tif', channels=channels, dtype='uint16')
    assert (made == array).all()


def test_the_extra_for_compressions_is_named(monkeypatch):
    file = geotiff(noise((40, 50, 6)), compress='lzw')
    if importlib.util.find_spec('imagecodecs'):
        pytest.skip('imagecodecs reads it')
    monkeypatch.setattr(
        'cmae_mm.datasets.decode.tiff.find_rasterio', lambda: False)
    with pytest.raises(MissingLibrary, match=(
            r"`pip install -e '\.\[geotiff\]'` \(rasterio\), or `pip install "
            'imagecodecs`$')):
        decode(file, 'x.tif', channels=6, dtype='uint16')


def test_packed_bits():
    array = noise((40, 50, 1))
    made = decode(geotiff(array, nbits=12), 'x.tif', channels=1,
                  dtype='uint16')
    assert (made == array).all()


@pytest.mark.parametrize('dtype,nodata', [
    ('uint16', 0), ('int16', -9999), ('float32', -3.4028234663852886e+38),
    ('float32', float('nan')), ('float64', 1e30)])
def test_nodata_is_filled_or_refused(dtype, nodata):
    array = noise((40, 50, 2)).astype(dtype) + np.array(1, dtype)
    array[:10, :, 0] = nodata
    file = geotiff(array, nodata=nodata)
    wanted = dict(channels=2, dtype='float32')
    with pytest.raises(UnfitImage, match=r'x\.tif has missing pixels \(12\.5'):
        decode(file, 'x.tif', **wanted)
    made = decode(file, 'x.tif', fill='mean', **wanted)
    expected = array[10:, :, 0].mean(dtype=float)
    np.testing.assert_allclose(made[:10, :, 0], expected, rtol=1e-3)
    assert (made[..., 1] == array[..., 1]).all()
    assert (decode(file, 'x.tif', fill=5, **wanted)[:10, :, 0] == 5).all()


def test_a_mask_of_missing_pixels(monkeypatch):
    array = noise((40, 50, 3))
    mask = np.ones((40, 50), bool)
    mask[:20] = False
    file = geotiff(array, mask)
    wanted = dict(dtype='uint16')
    with pytest.raises(UnfitImage, match='x.tif has missing pixels .50%'):
        decode(file, 'x.tif', **wanted)
    made = decode(file, 'x.tif', fill=3, **wanted)
    assert (made[:20] == 3).all() and (made[20:] == array[20:]).all()
    monkeypatch.setattr('cmae_mm.datasets.decode.maps.find_rasterio',
                        lambda: False)
    with pytest.raises(MissingLibrary,
                       match=r"x\.tif has a mask.*'\.\[geotiff\]'`"):
        decode(file, 'x.tif', **wanted)


def test_eight_bits_with_nodata_are_not_taken_for_colours():
    array = noise((40, 50, 3), 'uint8', 255) + np.uint8(1)
    array[:10] = 0
    file = geotiff(array, nodata=0)
    with pytest.raises(UnfitImage, match='has missing pixels .25%'):
        decode(file, 'x.tif')
    assert (decode(file, 'x.tif', fill=9)[:10] == 9).all()
    # Near infra-red is no alpha where the file does not say so.
    four = noise((40, 50, 4), 'uint8', 256)
    file = geotiff(four, photometric='rgb', alpha='no')
    with pytest.raises(UnfitImage, match='has 4 channel'):
        decode(file, 'x.tif')
    assert (decode(file, 'x.tif', channels=4) == four).all()
