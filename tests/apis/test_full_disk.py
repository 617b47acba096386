"""Commands whose output does not fit on the disk."""
import os

from helpers import run_commands, small_disk, write_images

# Arguments of each command, and the file or folder that the error names; {d}
# is the full disk, {t} the folder of a training.
COMMANDS = {
    'pretrain': ('{p} --model mini --epochs 1 --batch-size 4 --num-workers 0 '
                 '--out {d}/run', 'run'),
    'embed': ('{p} {t}/epoch_2.pth --num-workers 0 --out {d}/f.npz', 'f.npz'),
    'stats': ('{p} --num-workers 0 --out {d}/s.json', 's.json'),
    'store': ('{p} {d}/store', 'store'),
    'shards': ('{p} {d}/shards', 'shards'),
    'export': ('{t}/config.py {t}/epoch_2.pth {d}/encoder.safetensors '
               '--to timm',
               'encoder.safetensors'),
    'report': ('{t} --out {d}/report.html', 'report.html'),
    'splits': ('{p} --out {d}/splits --percent 50', 'splits'),
    'knn': ('{p} {t}/epoch_2.pth --num-workers 0 --ks 1 --work-dir {d}/knn',
            'evaluations.jsonl'),
    'views': ('{t}/config.py --out {d}/views.png', 'views.png'),
    'features': ('{t}/epoch_2.pth {p}/val/a --out {d}/features.png',
                 'features.png'),
}


def test_full_disk_ends_in_one_sentence(pretrained, tmp_path):
    photos = tmp_path / 'photos'
    for split in ('train', 'val'):
        for label in 'ab':
            write_images(photos / split / label, 3, size=80)
    with small_disk(tmp_path, 1 << 20) as disk:
        fill(disk)
        before = listing(disk)
        places = dict(p=photos, d=disk, t=pretrained.out)
        results = run_commands(
            *([name, *text.format(**places).split()]
              for name, (text, _) in COMMANDS.items()), cwd=tmp_path)
        for (name, (_, file)), (code, output) in zip(
                COMMANDS.items(), results, strict=True):
            last = output.strip().splitlines()[-1]
            assert code == 1, (name, output)
            assert last.startswith(f'cmae {name}: ') and file in last, last
            assert 'No space left' in last, last
            assert 'Traceback' not in output, (name, output)
        left = [path for path in listing(disk) - before
                if not path.startswith('run')]
        assert not left
        assert not [p for p in listing(disk) if '/.' in f'/{p}']


def fill(disk):
    """Leave no page free."""
    with open(disk / 'other', 'wb', buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def listing(folder):
    """Give the files and folders below a folder."""
    return {os.path.relpath(os.path.join(place, name), folder)
            for place, folders, files in os.walk(folder)
            for name in (*folders, *files)}


