"""Training, evaluation, statistics and packing agree on images and pixels.

For random folders; the expected names and pixels come from what was written,
through Pillow, tifffile and numpy.
"""
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import cmae_mm
from cmae_mm.datasets import LabelledDataset, PretrainingDataset
from cmae_mm.datasets.decode import decode_image, resize_image
from cmae_mm.datasets.pack import pack_images
from cmae_mm.datasets.source import open_source
from cmae_mm.datasets.stats import measure_images
from cmae_mm.evaluation.data import eval_pipeline

SIDE = 40


def pillow(array, kind, **kwargs):
    """Let Pillow write an image."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **kwargs)
    return file.getvalue()


def tiff(array, **kwargs):
    """Let tifffile write an image."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **kwargs)
    return file.getvalue()


def exif(orientation):
    """Make EXIF data with an orientation."""
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def alpha(rgb):
    """Add an alpha channel."""
    return np.dstack([rgb, rgb[..., 0] // 2 + 20])


def grey(rgb):
    """Make all colours the first one."""
    return np.repeat(rgb[..., :1], 3, 2)


def pgm16(rgb):
    """Write a PGM file of 16 bits by hand, of values that 8 bits hold."""
    height, width = rgb.shape[:2]
    return b'P5 %d %d 65535\n' % (width, height) + (
        rgb[..., 0].astype('>u2') * 257).tobytes()


# Ending, writer, and the colours that an array becomes.
FORMATS = {
    'png': ('.png', lambda a: pillow(a, 'PNG'), np.asarray),
    'png alpha': ('.PNG', lambda a: pillow(alpha(a), 'PNG'), np.asarray),
    'png grey': ('.png', lambda a: pillow(a[..., 0], 'PNG'), grey),
    'png turned': ('.png', lambda a: pillow(a, 'PNG', exif=exif(6)),
                   lambda a: np.rot90(a, -1)),
    'tiff': ('.tif', lambda a: tiff(a, photometric='rgb'), np.asarray),
    'tiff alpha': ('.tiff', lambda a: tiff(
        alpha(a), photometric='rgb', extrasamples=['unassalpha']),
        np.asarray),
    'tiff planes': ('.tif', lambda a: tiff(
        np.moveaxis(a, 2, 0), photometric='rgb', planarconfig='separate'),
        np.asarray),
    'tiff 16 bits': ('.tif', lambda a: tiff(
        a.astype('u2') * 257, photometric='rgb'), np.asarray),
    'webp': ('.webp', lambda a: pillow(a, 'WEBP', lossless=True), np.asarray),
    'webp alpha': ('.webp', lambda a: pillow(
        alpha(a), 'WEBP', lossless=True, exact=True), np.asarray),
    'webp turned': ('.webp', lambda a: pillow(
        a, 'WEBP', lossless=True, exif=exif(3)), lambda a: a[::-1, ::-1]),
    'bmp': ('.bmp', lambda a: pillow(a, 'BMP'), np.asarray),
    'ppm': ('.ppm', lambda a: pillow(a, 'PPM'), np.asarray),
    'pgm 16 bits': ('.pgm', pgm16, grey),
    'jpeg turned': ('.jpg', lambda a: pillow(a, 'JPEG', exif=exif(5)), None),
    'jpeg': ('.jfif', lambda a: pillow(a, 'JPEG', quality=95), None),
}
STEMS = st.sampled_from([
    b'a', b'B c', b'line\nbreak', b'\xc2\x85\xe2\x80\xa8', b'latin1_\xe9',
    b'"quoted"', b' space ', 'ünï猫'.encode(), b'x,1', b'#', b'tab\t'])
FOLDERS = st.lists(st.sampled_from([b'cat', b'dog', b'a b', b'\xe9']),
                   min_size=1, max_size=2)
# What is beside them: links, hidden and other files, none of them an image
# of its own.
EXTRAS = st.sets(st.sampled_from([
    'link', 'linked folder', 'dangling', 'circle', 'hidden', 'hidden folder',
    'fifo', 'other', 'empty class']))
IMAGES = st.dictionaries(
    st.tuples(FOLDERS.map(tuple), STEMS, st.sampled_from(sorted(FORMATS))),
    st.integers(0, 99), min_size=1, max_size=6)


def colours(seed):
    """Make an image of random size whose colours differ in each corner."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(SIDE, 2 * SIDE, 2)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def write(root: Path, images, extras):
    """Write a folder; give the expected pixels by name."""
    expected = {}
    for (folders, stem, kind), seed in images.items():
        ending, writer, made = FORMATS[kind]
        name = os.fsdecode(b'/'.join([*folders, stem + ending.encode()]))
        data, array = writer(colours(seed)), colours(seed)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        expected[name] = made(array) if made else None
    first = next(iter(expected))
    place = (root / first).parent
    if 'link' in extras:
        ending = os.path.splitext(first)[1]
        (place / f'zlink{ending}').symlink_to(root / first)
        expected[f'{os.path.dirname(first)}/zlink{ending}'] = expected[first]
    if 'linked folder' in extras:
        outside = root.with_name('outside')
        outside.mkdir()
        (outside / 'far.png').write_bytes(pillow(colours(7), 'PNG'))
        (root / 'linked').symlink_to(outside)
        expected['linked/far.png'] = colours(7)
    if 'dangling' in extras:
        (place / 'gone.jpg').symlink_to('nowhere.jpg')
    if 'circle' in extras:
        (place / 'circle').symlink_to(root)
    if 'hidden' in extras:
        (place / '.hidden.png').write_bytes(b'')
        (place / '._a.jpg').write_bytes(b'')
    if 'hidden folder' in extras:
        (root / '.ipynb_checkpoints').mkdir()
        shutil.copy(root / first, root / '.ipynb_checkpoints')
    if 'fifo' in extras:
        os.mkfifo(place / 'fifo.png')
    if 'other' in extras:
        (place / 'x.exr').write_bytes(b'')
        (root / 'notes.txt').write_bytes(b'')
    if 'empty class' in extras:
        (root / 'bird').mkdir()
    return dict(sorted(expected.items()))


def rgb(dataset, index):
    """Give the pixels that a data set's pipeline loads, as RGB."""
    return dataset[index]['img'][..., ::-1]


@pytest.fixture(scope='module')
def encoder(pretrained):
    """The encoder of a small model."""
    return cmae_mm.load_encoder(pretrained.checkpoint)


@settings(max_examples=12, deadline=None, derandomize=True,
          phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(images=IMAGES, extras=EXTRAS)
def test_all_ways_to_the_images_agree(images, extras, pretrained, encoder):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, 'photos')
        root.mkdir()
        expected = write(root, images, extras)
        names = list(expected)
        places = [root]
        for kind in ('store', 'shards'):
            places.append(Path(temporary, kind))
            pack_images(root, places[-1], kind, images_per_shard=2)
        found = [check_place(place, expected, pretrained) for place in places]
        for pixels, features, labels, moments in found[1:]:
            assert all(map(np.array_equal, pixels, found[0][0]))
            np.testing.assert_allclose(features, found[0][1], atol=1e-5)
            assert labels == found[0][2]
            assert moments == found[0][3]
        pixels, features, (classes, labels), (mean, _) = found[0]
        assert classes == sorted(
            {n.split('/')[0] for n in names}
            | ({'bird'} if 'empty class' in extras else set()))
        assert [classes[i] for i in labels] == [
            n.split('/')[0] for n in names]
        means = [p.mean((0, 1)) for p in pixels]
        np.testing.assert_allclose(mean, np.mean(means, 0), rtol=1e-6)
        check_evaluation(root, names, pixels, features, encoder)
        check_copies(root, names, pixels, Path(temporary, 'small'))


def check_place(place, expected, pretrained):
    """Compare names, order and pixels of a folder, a store or shards."""
    names = list(expected)
    source = open_source(place)
    assert list(source.names) == names
    dataset = PretrainingDataset(data_root=str(place),
                                 pipeline=[dict(type='LoadImage')])
    pixels = [rgb(dataset, i) for i in range(len(names))]
    for made, (name, array) in zip(pixels, expected.items(), strict=True):
        if array is not None:
            assert np.array_equal(made, array), name
        assert np.array_equal(
            made[..., ::-1], decode_image(source.read(names.index(name)),
                                          name=name))
    embedded = cmae_mm.embed(place, pretrained.checkpoint, num_workers=0)
    assert embedded.paths == names and not embedded.skipped
    stats = measure_images(place, sample=0, num_workers=0, channels=3,
                           dtype='uint8')
    assert stats['images'] == stats['sampled'] == len(names)
    assert not stats['broken'] and not stats['unfit']
    labelled = LabelledDataset(data_root=str(place))
    labels = [labelled.get_data_info(i)['gt_label']
              for i in range(len(labelled))]
    return (pixels, embedded.features,
            (list(labelled.metainfo['classes']), labels),
            (stats['mean'], stats['std']))


def check_evaluation(root, names, pixels, features, encoder):
    """Compare k-NN's pipeline, ``embed`` and ``preprocess``."""
    dataset = LabelledDataset(
        data_root=str(root), test_mode=True,
        pipeline=eval_pipeline(encoder.img_size))
    inputs = []
    for index, name in enumerate(names):
        crop = dataset[index]['inputs'][[2, 1, 0]]
        made = encoder.preprocess(root / name)
        assert torch.equal(encoder.normalize(crop), made)
        for given_ in (pixels[index].copy(), (root / name).read_bytes()):
            assert torch.equal(encoder.preprocess(given_), made)
        inputs.append(made)
    with torch.no_grad():
        made = encoder(torch.stack(inputs)).numpy()
    np.testing.assert_allclose(features, made, atol=1e-5)


def check_copies(root, names, pixels, out):
    """Compare copies of ``--short-side`` with images reduced in memory."""
    side = SIDE - 8
    pack_images(root, out, 'store', short_side=side)
    source = open_source(out)
    assert list(source.names) == names
    for index, (name, before) in enumerate(zip(names, pixels)):
        made = decode_image(source.read(index), name=name)[..., ::-1]
        assert min(made.shape[:2]) == side
        reduced = resize_image(before.copy(), made.shape[:2])
        if name.endswith(('.jpg', '.jfif')):
            assert np.abs(made.astype(int) - reduced).mean() < 6
        else:
            assert np.array_equal(made, reduced), name
