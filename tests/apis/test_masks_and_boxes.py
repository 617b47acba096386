"""Masks and COCO files of fine-tuning, without the libraries that train."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import write_images
from PIL import Image

from cmae_mm.config import ArgumentError
from cmae_mm.finetuning.boxes import read_boxes
from cmae_mm.finetuning.masks import read_masks


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Images with masks and boxes in two parts."""
    root = tmp_path_factory.mktemp('pictures')
    for part in ('train', 'val'):
        write_images(root / 'images' / part, 4, size=32, seed=len(part))
        (root / 'masks' / part).mkdir(parents=True)
        files = sorted((root / 'images' / part).iterdir())
        for number, file in enumerate(files):
            mask = np.full((32, 32), number % 2, np.uint8)
            Image.fromarray(mask).save(
                root / 'masks' / part / f'{file.stem}.png')
        # The ids of the categories have a hole.
        (root / f'{part}.json').write_text(json.dumps(dict(
            images=[dict(id=i, file_name=f'{part}/{f.name}', width=32,
                         height=32) for i, f in enumerate(files)],
            annotations=[dict(id=i, image_id=i, category_id=3 + 4 * (i % 2),
                              bbox=[1, 2, 10, 20]) for i in range(4)],
            categories=[dict(id=3, name='cat'), dict(id=7, name='dog')])))
    return root


@pytest.fixture
def copy(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / 'copy')


def test_crowds_and_boxes_without_width(copy):
    file = copy / 'val.json'
    content = json.loads(file.read_text())
    first, *others = content['annotations']
    content['annotations'] = [
        dict(first, bbox=[1, 1, 0, 5]), dict(first, bbox=[40, 1, 5, 5]),
        dict(first, bbox=[1, -9, 5, 5]), *others, dict(first, iscrowd=1)]
    file.write_text(json.dumps(content), 'utf-8-sig')
    (copy / 'image_info_test.json').write_text('{"images": []}')
    found = read_boxes(copy)
    part = found.parts['val']
    assert found.classes == ['cat', 'dog']
    assert [[b['category_id'] for b in r['boxes']] for r in part.records
            ] == [[0], [1], [0], [1]]
    assert part.labels == [[], ['dog'], ['cat'], ['dog']]
    assert any('3 boxes without width' in note for note in found.notes)


@pytest.mark.parametrize(('key', 'change', 'match'), [
    ('annotations', lambda found: [], 'has no boxes of'),
    ('annotations', lambda found: [dict(a, iscrowd=1) for a in found],
     'has no boxes of single objects'),
    ('annotations', lambda found: [dict(found[0], bbox=['1', 2, 3, 4])],
     'does not have 4 finite numbers'),
    ('annotations', lambda found: [dict(image_id=1)],
     'not a COCO file of boxes: .segmentation. is missing'),
    ('annotations', lambda found: [dict(found[0], image_id=-1)],
     'the image_id -1 of an annotation does not exist'),
    ('annotations', lambda found: [dict(found[0], category_id=4)],
     'the category_id 4 of an annotation does not exist'),
    ('annotations', lambda found: [dict(found[0], bbox=[1, 2, 3])],
     'does not have 4 finite numbers'),
    ('annotations', lambda found: [dict(found[0], bbox=[1, 2, np.nan, 3])],
     'does not have 4 finite numbers'),
    ('annotations', lambda found: [dict(found[0], bbox=[], segmentation=[])],
     'an annotation has neither a box nor polygons'),
    ('categories', lambda found: [dict(c, name='x') for c in found],
     'two categories'),
    ('categories', lambda found: [dict(c, name=c['name'] * 2) for c in found],
     r'the classes differ: .catcat., .dogdog. in .*val\.json and not in'),
    ('categories', lambda found: found[::-1], 'their order is not the same'),
    ('images', lambda found: [], 'it has no images'),
    ('images', lambda found: [*found, found[0]], '2 images have the id 0'),
    ('images', lambda found: [*found, dict(found[0], id=9)],
     '2 images have the file_name'),
    ('images', lambda found: [dict(i, width=7) for i in found],
     'its annotations have 7 x'),
    ('images', lambda found: [
        dict(i, file_name=i['file_name'].replace('val', 'train'))
        for i in found], 'is in two parts'),
    ('images', lambda found: [dict(i, file_name='none.jpg') for i in found],
     'none.jpg'),
    ('images', lambda found: [
        dict(i, file_name=rf'a\{i["id"]}.jpg') for i in found],
     r'write / in place of \\ in file_name'),
    ('images', lambda found: [*found[:3], dict(found[3], file_name='x.jpg')],
     'names 1 images that .* does not have, the first: x.jpg'),
])
def test_mistakes_of_coco_files(copy, key, change, match):
    file = copy / 'val.json'
    content = json.loads(file.read_text())
    file.write_text(json.dumps(dict(content, **{key: change(content[key])})))
    with pytest.raises(ArgumentError, match=match) as caught:
        read_boxes(copy)
    assert '\n' not in str(caught.value)


def test_masks_without_parts_or_names(pictures, tmp_path):
    shutil.copytree(pictures / 'images/train', tmp_path / 'images')
    shutil.copytree(pictures / 'masks/train', tmp_path / 'masks')
    shutil.copy(next((tmp_path / 'masks').iterdir()),
                tmp_path / 'masks/spare.png')
    found = read_masks(tmp_path)
    assert found.classes == ['value 0', 'value 1']
    assert {k: len(p.records) for k, p in found.parts.items()} == dict(
        train=3, val=1)
    assert any('1 masks without an image' in note for note in found.notes)


@pytest.mark.parametrize(('content', 'match'), [
    (lambda image: b'no mask', 'cannot be read'),
    (lambda image: image[:50], 'cannot be read'),
    (lambda image: Image.new('L', (9, 9)), 'has 9 x 9 pixels'),
    (lambda image: Image.new('RGB', (32, 32)), 'must have one channel'),
    (lambda image: Image.new('L', (32, 32), 7), 'the value 7, but'),
    (lambda image: Image.new('F', (32, 32), 0.5), 'from 0.5 to 0.5'),
    (lambda image: Image.new('I;16', (32, 32), 256), 'from 256 to 256'),
    ('JPEG', 'is a JPEG file, whose compression changes'),
    (lambda image: None, 'images have no mask with the same name'),
])
def test_mistakes_of_masks(copy, content, match):
    (copy / 'classes.txt').write_text('ground\nsky\n')
    mask = sorted((copy / 'masks/val').iterdir())[0]
    is_jpeg = content == 'JPEG'
    made = Image.open(mask).copy() if is_jpeg else content(mask.read_bytes())
    mask.unlink()
    if isinstance(made, bytes):
        mask.write_bytes(made)
    elif made:
        made.save(mask, 'JPEG' if is_jpeg else 'TIFF' if made.mode == 'F' else
                  'PNG')
    with pytest.raises(ArgumentError, match=match) as caught:
        read_masks(copy)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('names', 'match'), [
    (b'ground\nsky\nground', "the name 'ground' 2 times"),
    (b'ground\nsk\xff', 'is not UTF-8 text'),
    (b'\n'.join(b'%d' % i for i in range(256)), '256 lines'),
    (b'\n\nroad', 'masks have the value 0, but'),
    (b'', 'masks have the value 0, but .* has 0 names'),
])
def test_mistakes_of_names(copy, names, match):
    (copy / 'classes.txt').write_bytes(names)
    with pytest.raises(ArgumentError, match=match):
        read_masks(copy)


def test_masks_that_are_ignored(copy):
    (copy / 'classes.txt').write_text('ground\nsky\n', 'utf-8-sig')
    assert read_masks(copy).classes == ['ground', 'sky']
    for file in (copy / 'masks/val').iterdir():
        Image.new('L', (32, 32), 255).save(file)
    with pytest.raises(ArgumentError, match='val have ignored pixels only'):
        read_masks(copy)


def test_narrow_images_are_skipped(copy):
    """Training could not resize them; the first is named."""
    listed = json.loads((copy / 'train.json').read_text())
    for n in range(9):
        size = (4000, 1) if n == 8 else (32, 32)
        Image.new('RGB', size).save(copy / f'images/train/more{n}.png')
        Image.new('L', size).save(copy / f'masks/train/more{n}.png')
        listed['images'].append(dict(
            id=10 + n, file_name=f'train/more{n}.png', width=size[0],
            height=size[1]))
    (copy / 'train.json').write_text(json.dumps(listed))
    reason = 'its 4000 x 1 pixels are too narrow for the model'
    narrow = str(copy / 'images/train/more8.png')
    for found in (read_masks(copy), read_boxes(copy)):
        assert found.unreadable == {narrow: reason}
        assert len(found.parts['train'].records) == 12
        assert f'1 unreadable images are skipped, the first: {narrow}: ' in (
            '\n'.join(found.describe()))


def test_exports_of_labelling_tools(copy):
    """One file for all images, and files in the folders of the parts."""
    for part in ('train', 'val'):
        listed = json.loads((copy / f'{part}.json').read_text())
        for image in listed['images']:
            image['file_name'] = Path(image['file_name']).name
        (copy / f'images/{part}').rename(copy / part)
        (copy / f'{part}.json').unlink()
        (copy / f'{part}/_annotations.coco.json').write_text(
            json.dumps(listed))
    found = read_boxes(copy)
    assert {n: len(p.records) for n, p in found.parts.items()} == dict(
        train=4, val=4)
    (copy / 'annotations').mkdir()
    (copy / 'train/_annotations.coco.json').rename(
        copy / 'annotations/instances_default.json')
    (copy / 'val/_annotations.coco.json').unlink()
    found = read_boxes(copy)
    assert {n: len(p.records) for n, p in found.parts.items()} == dict(
        train=3, val=1)
    shutil.copy(copy / 'annotations/instances_default.json',
                copy / 'annotations/instances_b.json')
    with pytest.raises(ArgumentError, match='2 COCO files of the part train: '
                       'instances_b.json, instances_default.json'):
        read_boxes(copy)


def test_folders_without_masks(tmp_path):
    with pytest.raises(ArgumentError, match='no folders images and masks'):
        read_masks(tmp_path)
    with pytest.raises(ArgumentError, match='has no COCO file, such as'):
        read_boxes(tmp_path)
