"""Labelled images in training, validation and test parts."""
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np

from ..config import ArgumentError
from ..datasets.decode import UnfitImage, decode_short, make_settings
from ..datasets.listing import PART_NAMES, evenly_spaced, sort_classes
from ..datasets.names import add_reason, encode_name
from ..datasets.source import (ImageSource, SourceError, kind_of, open_record,
                               open_source)
from ..dependencies import cpu_count
from ..evaluation.data import (check_same_classes, draw_fraction, find_parts,
                               place_of)
from ..evaluation.features import check_unreadable, try_reading
from ..files import PathLike

# Percentage of each class that is drawn for validation.
VAL_PERCENT = 20
# Folders of other tasks.
_NO_CLASSES = {'images', 'image', 'imgs', 'img', 'masks', 'mask', 'labels',
               'annotations', 'semantic'}
# Number of training images to decode in advance, evenly spaced, if training
# skips unreadable ones.
_MOST_DECODED = 20_000


class Part(NamedTuple):
    """Images and their labels.

    Args:
        place (str): Folder, list or split of the images.
        records (list[dict[str, Any]]): Records with ``img_path``.
        labels (list[list[str]]): Names of the classes of each image.
        empty (list[str]): Classes without images.
        notes (list[str]): Notes on skipped rows and images.
    """

    place: str
    records: list[dict[str, Any]]
    labels: list[list[str]]
    empty: Sequence[str] = ()
    notes: Sequence[str] = ()

    def select(self, indices: Sequence[int], place: str) -> 'Part':
        """Select some of the images."""
        return self._replace(
            place=place, records=[self.records[i] for i in indices],
            labels=[self.labels[i] for i in indices])

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Count the images of each class."""
        counts = dict.fromkeys(classes, 0)
        for names in self.labels:
            for name in names:
                counts[name] += 1
        return counts


class LabelledData(NamedTuple):
    """The parts of a labelled data set.

    Args:
        classes (list[str]): Names of the classes, sorted.
        parts (dict[str, Part]): ``train``, ``val`` and maybe ``test``.
        notes (list[str]): Notes on skipped rows and images.
        unreadable (dict[str, str]): Unreadable images and the reason.
        task (str): 'classify', 'multilabel', 'segment' or 'detect'.
        label_map (dict[int, int]): Class of each value of the masks.
    """

    classes: list[str]
    parts: dict[str, Part]
    notes: list[str]
    unreadable: dict[str, str]
    task: str
    label_map: dict[int, int] = {}

    def describe(self) -> list[str]:
        """Describe each part in one line."""
        uses = dict(train='training', val='validation, chooses the checkpoint',
                    test='test, scored once at the end')
        names = ', '.join(map(encode_name, self.classes[:5]))
        more = ', ...' if len(self.classes) > 5 else ''
        lines = [f'classes        {len(self.classes)}: {names}{more}']
        for name, part in self.parts.items():
            lines.append(f'{name:<15}{len(part.records):,} images of '
                         f'{encode_name(part.place)} ({uses[name]})')
        return lines + [f'note           {note}' for note in self.notes]

    def annotations(self, name: str) -> str:
        """Format a part as an annotation file of OpenMMLab.

        Args:
            name (str): 'train', 'val' or 'test'.

        Returns:
            str: JSON with ``metainfo.classes`` and ``data_list``, or for
            detection a COCO file.
        """
        part = self.parts[name]
        if self.task == 'detect':
            return _to_coco(part, self.classes)
        number = {c: i for i, c in enumerate(self.classes)}
        entries = []
        for record, names in zip(part.records, part.labels):
            labels: Any = [number[n] for n in names]
            if self.task == 'classify':
                record = dict(record, gt_label=labels[0])
            elif self.task == 'multilabel':
                record = dict(record, gt_label=labels)
            entries.append(json.dumps(record))
        head: dict[str, Any] = dict(classes=self.classes)
        if self.label_map:
            head['label_map'] = self.label_map
        return (f'{{"metainfo": {json.dumps(head)},\n "data_list": [\n'
                + ',\n'.join(entries) + '\n]}\n')


def _to_coco(part: Part, classes: Sequence[str]) -> str:
    """Format boxes as a COCO file, with absolute paths of images."""
    images, boxes = [], []
    for number, record in enumerate(part.records):
        images.append(dict(
            id=number, file_name=record['img_path'], width=record['width'],
            height=record['height']))
        boxes += [dict(box, image_id=number) for box in record['boxes']]
    return json.dumps(dict(
        images=images,
        annotations=[dict(box, id=i + 1) for i, box in enumerate(boxes)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)]))


def read_labelled(data: PathLike,
                  multilabel: bool = False,
                  val: str | None = None,
                  labels_per_class: int | None = None,
                  seed: int = 0,
                  images: Mapping[str, Any] | None = None
                  ) -> LabelledData:
    """Read and check the parts of a labelled data set.

    Args:
        data (str | PathLike): Class folders, also under ``train``, ``val``
            and ``test``; a list with labels; a store or shards.
        multilabel (bool): Whether images in a list have several labels,
            separated by ``|`` or ``;``. Defaults to False.
        val (str, optional): Name of the validation part, or a path. Defaults
            to the first of ``val``, ``valid``, ``validation`` and ``dev``,
            otherwise to 20 % of each class.
        labels_per_class (int, optional): Number of training images of each
            class. Defaults to all.
        seed (int): Seed of both draws. Defaults to 0.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.

    Returns:
        LabelledData: The parts.

    Raises:
        ArgumentError: If there are no labels, fewer than two classes, classes
            without images, or too many unreadable images.
    """
    try:
        found = {name: _to_part(source) for name, source in find_parts(
            data, val, dict(val='val', test='test'), multilabel).items()}
        if kind_of(data) == 'list':
            _note_other_splits(found, open_source(
                data, labels='several' if multilabel else True))
    except (SourceError, FileNotFoundError) as error:
        raise ArgumentError(str(error)) from error
    found, unreadable = drop_unreadable(found, images)
    classes = sort_classes({*found['train'].empty, *(
        c for names in found['train'].labels for c in names)})
    several = [c for c in classes if '|' in c]
    if several and not multilabel and kind_of(data) == 'list':
        raise ArgumentError(
            f'{data} has images of several labels, {several[0]!r}; use the '
            'task multilabel (--task multilabel)')
    joined = [c for c in classes if re.search(r'[,\s]', c)]
    if multilabel and joined and all(len(names) < 2 for part in found.values()
                                     for names in part.labels):
        found['train'] = found['train']._replace(notes=[
            *found['train'].notes, 'no image has several labels; separate them'
            f' by | or ;, if {joined[0]!r} is more than one'])
    if classes and {c.lower() for c in classes} <= _NO_CLASSES:
        raise ArgumentError(
            f'{data} has the folders {", ".join(classes)} instead of classes; '
            'use --task segment for masks, --task detect for boxes')
    if len(classes) < 2:
        notes = '; '.join(['', *found['train'].notes])
        raise ArgumentError(
            f'{found["train"].place} has one class, {classes}; a classifier '
            f'needs two or more{notes}')
    task = 'multilabel' if multilabel else 'classify'
    return complete(LabelledData(classes, found, [], unreadable, task),
                    labels_per_class, seed)


def collect_parts(root: Path, val: str | None,
                  find: Callable[[Sequence[str]], Any]) -> dict[str, Any]:
    """Find the parts of a folder by their names.

    Args:
        root (Path): The folder.
        val (str, optional): Name of the validation part.
        find (Callable): Finds the part with one of several names, '' for all
            images; returns None if there is none.

    Returns:
        dict[str, Any]: Results by part; all images are ``train`` if there are
        no parts.

    Raises:
        ArgumentError: If a part is missing.
    """
    names = dict(PART_NAMES, **({'val': (val, )} if val else {}))
    found = {part: find(words) for part, words in names.items()}
    parts = {part: one for part, one in found.items() if one is not None}
    if not parts:
        parts['train'] = find([''])
    for part, name in (('train', 'train'), ('val', val)):
        if name and parts.get(part) is None:
            raise ArgumentError(f'{root} has no part {name}')
    return parts


def describe_narrow(image: np.ndarray, scale: tuple[int, int]) -> str:
    """Describe an image that is too narrow to be resized, '' for others."""
    height, width = image.shape[:2]
    return '' if min(mmcv.rescale_size((width, height), scale)) else (
        f'its {width} x {height} pixels are too narrow for the model')


def complete(data: LabelledData, labels_per_class: int | None,
             seed: int) -> LabelledData:
    """Draw the validation part and few labels, and check all parts.

    Args:
        data (LabelledData): Parts and classes.
        labels_per_class (int, optional): See :func:`read_labelled`.
        seed (int): Seed of both draws.

    Returns:
        LabelledData: With a part ``val``, and notes.

    Raises:
        ArgumentError: If an image is in two parts, or for classification if
            the classes of the parts differ.
    """
    parts, classes = dict(data.parts), data.classes
    is_dense = data.task in ('segment', 'detect')
    if 'val' not in parts:
        parts['train'], parts['val'] = _draw_val(
            parts['train'], () if is_dense else classes, seed)
    if labels_per_class is not None:
        parts['train'] = _draw_few(
            parts['train'], classes, labels_per_class, seed, is_dense)
    notes = []
    if data.unreadable:
        path, why = next(iter(data.unreadable.items()))
        notes.append(f'{len(data.unreadable):,} unreadable images are '
                     f'skipped, the first: {add_reason(path, why)}')
    notes += [f'{part.place}: {note}' for part in parts.values()
              for note in part.notes]
    blank = sum(not names for part in parts.values() for names in part.labels)
    if blank and data.task == 'multilabel':
        notes.append(f'{blank:,} images have no label and count as negatives')
    notes += _check_classes(parts, data)
    return data._replace(
        parts={k: parts[k] for k in PART_NAMES if k in parts},
        notes=[*data.notes, *notes])


def _note_other_splits(parts: dict[str, Part], whole: ImageSource) -> None:
    """Note rows of a list that are in no part."""
    known = {_key_of(r) for part in parts.values() for r in part.records}
    others = [r['img_path'] for r in whole if _key_of(r) not in known]
    if others:
        parts['train'] = parts['train']._replace(notes=[
            *parts['train'].notes,
            f'{len(others):,} rows with another split are skipped, the first: '
            f'{encode_name(others[0])}'])


def _to_part(source: ImageSource) -> Part:
    """Return records and class names of a source."""
    records = [{k: v for k, v in record.items() if k != 'gt_label'}
               for record in source]
    labels = [source.label_names(i) for i in range(len(source))]
    notes = [note for note in (*source.notes, str(source.skipped))
             if note and not note.startswith('there is no part')]
    used = {name for one in labels for name in one}
    return Part(place_of(source), records, labels,
                sorted({*(source.classes or ())} - used), notes)


def _key_of(record: Mapping[str, Any]) -> str:
    """Return the identity of an image."""
    return str((os.path.normpath(record['img_path']), record.get('img_key')))


def _strata(part: Part, classes: Sequence[str]) -> list[int]:
    """Return the number of the rarest class of each image."""
    counts = part.counts(classes)
    number = {c: i for i, c in enumerate(classes)}
    return [number[min(names, key=lambda n: counts[n])] if names else -1
            for names in part.labels]


def _draw_val(part: Part, classes: Sequence[str], seed: int) -> list[Part]:
    """Split a validation part from the training part.

    Args:
        part (Part): The training part.
        classes (Sequence[str]): Classes to stratify by; none for a plain
            draw.
        seed (int): Seed of the draw.

    Returns:
        list[Part]: The rest, and the validation part.
    """
    single = [c for c, n in part.counts(classes).items() if n == 1
              ] if classes else []
    if single:
        raise ArgumentError(
            f'{part.place} has 1 image of the class {single[0]!r}, too few '
            'for training and validation; add images, or set a validation '
            'part with val (--val)')
    count = len(part.records)
    strata = _strata(part, classes) if classes else [0] * count
    drawn = {*draw_fraction(strata, VAL_PERCENT, seed)}
    rest = [i for i in range(count) if i not in drawn]
    which = ' of each class' if classes else ''
    return [
        part.select(rest, f'{part.place}, without the validation images'),
        part.select(sorted(drawn), f'{part.place}, {VAL_PERCENT} %{which}, '
                    f'drawn with seed {seed}')._replace(notes=())]


def _draw_few(part: Part, classes: Sequence[str], count: int, seed: int,
              is_dense: bool) -> Part:
    """Draw a number of images of each class, the rarest class first.

    An image counts for each of its classes. Images without a class are drawn
    as one more class.
    """
    counts = part.counts(classes)
    for name, found in counts.items():
        if 0 < found < count and not is_dense:
            raise ArgumentError(
                f'{part.place} has {found} images of the class {name!r}, '
                f'fewer than labels_per_class={count} (--labels-per-class)')
    order = np.random.default_rng(seed).permutation(len(part.labels)).tolist()
    drawn: set[int] = set()
    for name in sorted(classes, key=lambda c: counts[c]):
        having = [i for i in order if name in part.labels[i]]
        others = [i for i in having if i not in drawn]
        drawn.update(others[:max(count - len(having) + len(others), 0)])
    drawn.update([i for i in order if not part.labels[i]][:count])
    which = 'up to ' if is_dense else ''
    return part.select(sorted(drawn), f'{part.place}, {which}{count} of each '
                       f'class, drawn with seed {seed}')


def _check_classes(parts: dict[str, Part], data: LabelledData
                   ) -> list[str]:
    """Check that all parts have the same classes and no common image."""
    notes, classes = [], data.classes
    needing = dict(classify=('train', 'val'), multilabel=('train', ))
    seen: dict[str, str] = {}
    for name, part in parts.items():
        used = {c for names in part.labels for c in names}
        check_same_classes(classes, [*classes, *sorted(
            {*used, *part.empty} - {*classes})], part.place)
        lacking = [c for c in classes if c not in used]
        if lacking:
            more = ', ...' if len(lacking) > 5 else ''
            text = (f'{part.place} has no images of the class '
                    f'{", ".join(map(repr, lacking[:5]))}{more}')
            if name in needing.get(data.task, ()):
                raise ArgumentError(f'{text}; training and validation need '
                                    'images of each class')
            notes.append(text)
        for record in part.records:
            other = seen.setdefault(_key_of(record), name)
            if other != name:
                raise ArgumentError(
                    f'{encode_name(record["img_path"])} is in two parts, '
                    f'{other} and {name}')
    return notes


def _find_unreadable(records: Sequence[dict[str, Any]],
                     images: Mapping[str, Any] | None,
                     check: Callable | None, numbers: Sequence[int]
                     ) -> tuple[dict[int, str], dict[bytes, int]]:
    """Decode images and return unreadable ones.

    Args:
        records (Sequence[dict[str, Any]]): Records with ``img_path``.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.
        check (Callable, optional): See :func:`drop_unreadable`.
        numbers (Sequence[int]): Numbers of the images to decode.

    Returns:
        tuple: Reasons by image number, and image numbers by digest of the
        file.

    Raises:
        ArgumentError: If an image has other channels or another type than the
            settings.
    """
    settings = make_settings(**(images or {}))

    def read(record: dict[str, Any]) -> tuple[bytes, np.ndarray]:
        content = open_record(record)
        # Large files are given by their path.
        digest = hashlib.blake2b(
            content if isinstance(content, bytes) else str(content).encode(),
            digest_size=16).digest()
        return digest, decode_short(content, None if check else 1, settings,
                                    record['img_path'])

    def decode(index: int) -> tuple[bytes, str]:
        found, reason = try_reading(partial(read, records[index]), strict=True)
        if reason:
            return b'', reason
        digest, image = found
        return digest, check(records[index], image) if check else ''

    try:
        with ThreadPoolExecutor(cpu_count()) as pool:
            found = list(pool.map(decode, numbers))
    except UnfitImage as error:
        raise ArgumentError(
            f'{error}; the encoder takes {settings.channels} channel(s) of '
            f'{settings.dtype}; set --stats to statistics of these images, or '
            'use a checkpoint for such images') from error
    return ({i: why for i, (_, why) in zip(numbers, found) if why},
            {digest: i for i, (digest, why) in zip(numbers, found) if not why})


def drop_unreadable(parts: Mapping[str, Part],
                    images: Mapping[str, Any] | None,
                    check: Callable | None = None) -> Any:
    """Skip unreadable images, unless there are too many.

    Args:
        parts (Mapping[str, Part]): The parts.
        images (Mapping[str, Any], optional): Arguments of ``LoadImage``.
        check (Callable, optional): Called with each record and its image;
            returns why it cannot be used, or ''.

    Returns:
        tuple: The parts, and the reason of each unreadable image.

    Raises:
        ArgumentError: If they are more than a tenth of a part.
    """
    kept, unreadable = {}, {}
    seen: set[bytes] = set()
    for name, part in parts.items():
        # Classifiers skip unreadable images in training, not in validation.
        count = len(part.records)
        skips = name == 'train' and 'val' in parts and not check
        most = _MOST_DECODED if skips else count
        faults, digests = _find_unreadable(
            part.records, images, check, evenly_spaced(count, most))
        copies = [i for digest, i in digests.items() if digest in seen]
        named = {part.records[i]['img_path']: why for i, why in faults.items()}
        check_unreadable(named, count, part.place)
        unreadable.update(named)
        rest = [i for i in range(len(part.records)) if i not in faults]
        kept[name] = part.select(rest, part.place)
        if copies:
            first = part.records[copies[0]]['img_path']
            kept[name] = kept[name]._replace(notes=[*part.notes, (
                f'{len(copies):,} images are copies of images of another part,'
                f' the first: {encode_name(first)}')])
        seen.update(digests)
    return kept, unreadable
