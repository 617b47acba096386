"""Measure images, and find the settings that they need."""
import argparse
import os
from typing import Any, Dict, List, Union

from ..files import check_output
from .arguments import add_data
from .command import Command, Result
from .parser import at_least

DTYPES = ('uint8', 'uint16', 'float32')
_PER_CHANNEL = ('mean', 'std', 'min', 'low', 'high', 'max')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser, 'folder of images, list of images, store or shards '
             '(their part train where there is one)')
    parser.add_argument(
        '--out', metavar='FILE',
        help='JSON file to write, for `cmae pretrain --stats` and for '
        'image_stats in a config')
    parser.add_argument(
        '--sample', type=at_least(0), default=2000, metavar='N',
        help='images to decode, drawn at random, the same each time; 0 for '
        'all (default: 2000)')
    parser.add_argument(
        '--side', type=at_least(1), default=256, metavar='PIXELS',
        help='count the images smaller than this, which training enlarges '
        '(default: 256)')
    parser.add_argument(
        '--num-workers', type=at_least(0), metavar='N',
        help='processes that read images (default: one for each processor '
        'core, at most 8)')
    group = parser.add_argument_group(
        'how images are decoded (kept in the file, and used by training)')
    group.add_argument(
        '--channels', type=at_least(1), metavar='C',
        help='number of channels (default: what most images have; 3 where '
        'grey ones are among colours)')
    group.add_argument(
        '--dtype', choices=DTYPES,
        help='type of the values (default: the narrowest for all files; '
        'float32 with a range or a window)')
    group.add_argument(
        '--bands', type=at_least(0), nargs='+', metavar='N',
        help='channels of the files to take, numbered from 0')
    group.add_argument(
        '--value-range', nargs='+', type=_number_or('per_image'),
        metavar='VALUE', help='LOW HIGH, mapped to the ends of the type; or '
        "per_image, each image's own (default: values as they are)")
    group.add_argument(
        '--fill', type=_number_or('mean'), metavar='VALUE',
        help='value of missing pixels (NaN, nodata): a number, or mean')
    group.add_argument(
        '--window', nargs='+', type=_number_or('file'), metavar='VALUE',
        help="CENTRE WIDTH of a window on DICOM values, or file, each file's "
        'own')
    group.add_argument(
        '--pages', choices=('channels', 'first'),
        help='what the pages of a TIFF file, or the frames of a DICOM file, '
        'are: channels of one image, or images of which the first is taken')


def _number_or(word: str) -> Any:
    """Make a type of argument: a number, or one word."""

    def number(text: str) -> Union[float, str]:
        if text == word:
            return text
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f'must be a number or {word}, but got {text!r}') from None
        return int(value) if value.is_integer() else value

    return number


def settings_of(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the options on decoding as arguments of the function."""
    settings = {name: getattr(args, name) for name in (
        'channels', 'dtype', 'bands', 'fill', 'pages')}
    for name in ('value_range', 'window'):
        given = getattr(args, name)
        # One word, or two numbers.
        settings[name] = given[0] if given and len(given) == 1 else given
    return {k: v for k, v in settings.items() if v is not None}


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded."""
    if args.out:
        check_output(os.path.expanduser(args.out))
    for name, word in (('value_range', 'per_image'), ('window', 'file')):
        given = getattr(args, name)
        numbers = given and len(given) == 2 and word not in given
        if given and given != [word] and not numbers:
            raise ValueError(
                f'--{name.replace("_", "-")} takes two numbers or {word}, but '
                f'got {" ".join(map(str, given))}')


def stats(args: argparse.Namespace) -> Result:
    """Measure, print, and write the file."""
    from ..datasets.stats import measure_images, write_image_stats
    found = measure_images(
        args.data, sample=args.sample, side=args.side,
        num_workers=args.num_workers, **settings_of(args))
    print('\n'.join(describe(found)))
    if args.out:
        write_image_stats(found, args.out)
        print(f'Written to {args.out}; for these images: cmae pretrain '
              f"{args.data} --stats {args.out}, or image_stats='{args.out}' "
              'in a config')
    return found


def describe(found: Dict[str, Any]) -> List[str]:
    """Describe the result in a few lines."""
    from ..datasets.names import encode_name
    sizes = found['sizes']
    height, width = sizes['height'], sizes['width']
    settings = ', '.join(f'{k}={v!r}' for k, v in found['settings'].items())
    lines = [
        f'images     {found["source"]}',
        f'decoded    {found["sampled"]:,} of them',
        'types      ' + ', '.join(
            f'{count:,} of {kind}' for kind, count in found['types'].items()),
        f'sizes      {height[0]} to {height[2]} pixels high, {width[0]} to '
        f'{width[2]} wide, {height[1]} x {width[1]} in the middle; '
        f'{sizes["smaller"]:,} smaller than {sizes["side"]}, '
        f'{sizes["strips"]:,} longer than 3 to 1',
        f'channels   {found["channels"]} of {found["dtype"]}',
        '           ' + ''.join(f'{word:>12}' for word in (
            'mean', 'deviation', 'least', '0.1 %', '99.9 %', 'greatest'))
    ]
    for number in range(found['channels']):
        lines.append(f'  {number:<9}' + ''.join(
            f'{found[name][number]:>12.5g}' for name in _PER_CHANNEL))
    for name in ('broken', 'unfit'):
        count = found[f'{name}_count']
        if count:
            first = found[name][0]
            why = first['reason'] if name == 'unfit' else (
                f'{encode_name(first["path"])} ({first["reason"]})')
            lines.append(f'{name:<11}{count:,}, the first one: {why}')
    pairs = found['near_duplicates']
    if pairs:
        one, other = map(encode_name, pairs[0])
        lines.append(f'repeated   {len(pairs):,} look like another one, the '
                     f'first one: {other} like {one}')
    lines += [f'note       {note}' for note in found['notes']]
    return [*lines, f'settings   {settings}']


COMMANDS = [
    Command(
        name='stats',
        help='measure images, and find the settings that they need',
        description='Sizes, types, channels, mean and deviation, broken files '
        'and repeated images of a sample. Configs need the file that it '
        'writes for images that are not 8-bit colour.',
        example='cmae stats photos --out stats.json\n'
        'cmae stats scans --window 40 400 --dtype uint8 --out stats.json\n'
        'cmae stats tiles --bands 3 2 1 7 --fill mean --out stats.json',
        add_arguments=add_arguments,
        check=check,
        run=stats),
]
