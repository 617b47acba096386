"""Features of image files, splits, and the commands of evaluation."""
import json
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import (ROOT, build, free_port, model_cfg, run_commands, run_tool,
                     runner_cfg, write_images)
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from PIL import Image

import cmae_mm
from cmae_mm.apis.evaluation import EvaluationOptions
from cmae_mm.checkpoints import export_encoder
from cmae_mm.datasets.decode import UnfitImage
from cmae_mm.datasets.source import open_source
from cmae_mm.evaluation.data import (EvaluationDataError, open_labelled,
                                     read_split, write_split)
from cmae_mm.evaluation.features import FrozenFeatures


def test_features_of_image_files(image_root, tmp_path):
    """As by the transforms of the framework, one image at a time."""
    cfg = runner_cfg(image_root, tmp_path)
    model = build(dict(model_cfg(), data_preprocessor=cfg.data_preprocessor))
    features, labels = FrozenFeatures(
        model, cfg, batch_size=5, num_workers=0).extract('train')
    assert features.shape == (24, 48) and model.training
    assert labels.tolist() == [0] * 12 + [1] * 12
    size = cfg.model.backbone.img_size
    dataset = DATASETS.build(dict(
        type='LabelledDataset', data_root=str(image_root), test_mode=True,
        data_prefix='train', pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeImage', scale=round(size * 256 / 224)),
            dict(type='CenterCrop', crop_size=size),
            dict(type='PackInputs')]))
    sample = dataset[17]['inputs'].float().flip(0)[None]
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    expected = model.eval().extract_feat((sample - mean) / std)
    torch.testing.assert_close(features[17:18], expected)


def test_split_files(image_root, tmp_path):
    source = open_source(image_root, split='train', labels=True)
    path = str(tmp_path / 'split.txt')
    assert write_split(source, 25, 0, path) == 6
    paths = [source.path(i) for i in range(24)]
    index = read_split(path, paths)
    few = DATASETS.build(
        dict(
            type='LabelledDataset', data_root=str(image_root),
            data_prefix='train', ann_file=path, pipeline=[]))
    for i, place in enumerate(index):
        assert few.get_data_info(i)['img_path'] == paths[place]
        assert few.get_data_info(i)['gt_label'] == int(place >= 12)
    for text, message in (('', 'is empty'),
                          ('class0/none.jpg 0\n', '1 images .* not in the')):
        (tmp_path / 'bad.txt').write_text(text)
        with pytest.raises(ValueError, match=message):
            read_split(str(tmp_path / 'bad.txt'), paths)


@pytest.fixture(scope='module')
def pretraining(image_root, tmp_path_factory):
    """A config file and a checkpoint of two training steps."""
    folder = tmp_path_factory.mktemp('pretraining')
    cfg = runner_cfg(image_root, folder / 'work')
    runner = Runner.from_cfg(cfg)
    runner.train()
    (folder / 'config.py').write_text(cfg.pretty_text)
    return folder / 'config.py', folder / 'work/iter_2.pth'


def last_json(output: str) -> dict:
    lines = [s for s in output.splitlines() if s.startswith('{"checkpoint')]
    return json.loads(lines[-1])


def test_the_commands(pretraining, image_root, tmp_path):
    config, checkpoint = pretraining
    common = ['--json', '--num-workers', 0, '--work-dir', tmp_path / 'work']
    out = run_tool('cmae', 'knn', image_root, checkpoint, *common,
                   '--encoder', 'target', '--dtype', 'float16')
    result = last_json(out)
    assert {'top1', 'balanced', 'best_k', '5', '10', '20'} <= result.keys()
    assert result['top1'] == max(result[k] for k in ('5', '10', '20'))
    low, high = result['interval']  # 8 images
    assert 0 <= low <= result['top1'] <= high <= 100

    out = run_tool('cmae', 'linear', image_root, 'random', '--config', config,
                   *common, '--epochs', 5, '--lrs', 0.1, 1)
    assert last_json(out)['top1'] == max(last_json(out)[k]
                                         for k in ('0.1', '1'))

    run_tool('cmae', 'splits', image_root, '--percent', 50, '--out',
             tmp_path)
    out = run_tool('cmae', 'low-shot', image_root, checkpoint, *common,
                   '--trials', 2, '--shots', 1, 5,
                   '--splits', tmp_path / '50pct_seed0.txt')
    assert {'1', '1_std', '5', '50pct_seed0'} <= last_json(out).keys()


def test_one_command_gives_what_the_three_give(
        pretraining, image_root, tmp_path, capsys):
    checkpoint, own = pretraining[1], dict(num_workers=0, work_dir=tmp_path)
    by_knn = cmae_mm.knn(image_root, checkpoint, ks=(1, 5, 7000), **own)
    assert 'k = 7000: skipped, above' in capsys.readouterr().out
    by_line = cmae_mm.linear(image_root, checkpoint, lrs=(0.1, 1.), epochs=5,
                             **own)
    few = cmae_mm.low_shot(image_root, checkpoint, shots=(2, ), trials=2,
                           **own)
    found = cmae_mm.frozen(
        image_root, checkpoint, ks=(1, 5), lrs=(0.1, 1.), epochs=5,
        shots=(2, ), trials=2, **own)
    assert found['knn'] == by_knn['top1']
    assert found['linear'] == by_line['top1']
    assert found['low-shot 2'] == few['2']
    for kind, alone in (('knn', by_knn), ('linear', by_line),
                        ('low-shot', few)):
        assert found['details'][kind].items() <= alone.items()


def test_mistakes_are_refused_before_features_are_extracted(
        image_root, tmp_path, monkeypatch):
    """The checkpoint is not even read."""
    (tmp_path / 'model.pth').touch()
    (tmp_path / 'one.txt').write_text('class0/001.jpg 0\n')
    monkeypatch.setattr(EvaluationOptions, 'load', None)
    for function, options, message in (
            (cmae_mm.knn, dict(ks=(50, 25)), 'k=25 or more .* there are 24'),
            (cmae_mm.knn, dict(ks=()), 'ks is empty'),
            (cmae_mm.linear, dict(lrs=()), 'lrs is empty'),
            (cmae_mm.frozen, dict(ks=[25]), 'k=25 or more'),
            (cmae_mm.frozen, dict(shots=[13]), 'smallest class has 12'),
            (cmae_mm.low_shot, dict(shots=[1, 13]), '13 images per class'),
            (cmae_mm.low_shot, dict(shots=[1], splits=['none.txt']),
             'there is no split file none.txt'),
            (cmae_mm.low_shot, dict(splits=[tmp_path / 'one.txt']),
             'one.txt have a single class')):
        with pytest.raises(ValueError, match=message):
            function(image_root, tmp_path / 'model.pth', **options)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'work_dirs').touch()  # the default folder of the results
    with pytest.raises(OSError, match='Not a directory'):
        cmae_mm.knn(image_root, tmp_path / 'model.pth')
    with pytest.raises(TypeError, match="unexpected .* argument 'poll'"):
        cmae_mm.knn(image_root, tmp_path / 'model.pth', poll='cls')


def test_equal_images_are_warned_of(tmp_path, capsys):
    write_images(tmp_path / 'one', 1)
    for name in ('a/0', 'a/1', 'b/2', 'b/3'):
        for part in ('train', 'val'):
            file = tmp_path / f'data/{part}/{name}.jpg'
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / 'one/000.jpg', file)
    export_encoder(build(model_cfg()), str(tmp_path / 'e.safetensors'))
    cmae_mm.knn(tmp_path / 'data', tmp_path / 'e.safetensors', ks=[1],
                work_dir=tmp_path, num_workers=0, batch_size=3,
                dtype='float16')
    for out in (None, tmp_path / 'f.npz'):
        cmae_mm.embed(tmp_path / 'data', tmp_path / 'e.safetensors', out,
                      num_workers=0, batch_size=3)
    cmae_mm.embed(tmp_path / 'one', tmp_path / 'e.safetensors', num_workers=0)
    assert capsys.readouterr().out.count('have the same features') == 3


def test_distributed_features_are_the_same(
        pretraining, image_root, tmp_path):
    """With an unreadable image on one of the ranks."""
    config, checkpoint = pretraining
    data = shutil.copytree(image_root, tmp_path / 'data')
    (data / 'train/class0/000.jpg').write_text('no image')
    args = ['knn', data, checkpoint, '--json', '--num-workers', 0,
            '--work-dir', tmp_path]
    alone = last_json(run_tool('cmae', *args))
    ranks = last_json(
        run_tool(sys.executable, '-m', 'torch.distributed.run',
                 '--nproc_per_node=2', f'--master_port={free_port()}',
                 '-m', 'cmae_mm', *args, '--launcher', 'pytorch'))
    assert ranks == alone


def test_unreadable_images_are_skipped(pretraining, tmp_path, capsys):
    """The results are those without the files."""
    data = tmp_path / 'data'
    for part in ('train', 'val'):
        for c in range(2):
            write_images(data / part / f'class{c}', 6, seed=c)
    whole = open_source(data, split='train', labels=True)
    write_split(whole, 100, 0, str(tmp_path / 'all.txt'))
    own = dict(work_dir=tmp_path, num_workers=0, batch_size=1)

    def evaluate(**splits):
        return (cmae_mm.knn(data, pretraining[1], ks=(1, 3), **own),
                cmae_mm.low_shot(data, pretraining[1], shots=(2, ), trials=2,
                                 **splits, **own))

    broken = [data / 'train/class0/003.jpg', data / 'val/class1/000.jpg']
    for file in broken:
        file.write_text('no image')
    found, few = evaluate(splits=[tmp_path / 'all.txt'])
    shown = capsys.readouterr().out
    for part, name in (('train', 'class0/003.jpg'), ('val', 'class1/000.jpg')):
        assert shown.count(f'skipped: {name} cannot be decoded') == 2
        assert shown.count(
            f'1 images could not be read in {data / part}\n') == 2
    assert '11 training and 11 validation images' in shown
    for file in broken:
        file.unlink()
    assert evaluate()[0] == found
    assert evaluate()[1].items() <= few.items()
    for file in sorted((data / 'val').rglob('*.jpg'))[:2]:
        file.write_text('no image')
    with pytest.raises(EvaluationDataError, match=(
            '2 of 11 images of .*val cannot be read, more than a tenth, the '
            'first: .*class0/000.jpg')):
        evaluate()
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)).save(
        data / 'train/class0/deep.png')
    with pytest.raises(UnfitImage, match='16'):
        evaluate()


def test_the_test_part_is_scored_only_without_a_validation_part(tmp_path):
    for part in ('train', 'test'):
        write_images(tmp_path / part / 'a', 2)
    scored = open_labelled(tmp_path).val
    assert scored.split == 'test'
    assert 'using the test part' in scored.describe()
    write_images(tmp_path / 'Valid/a', 3)
    scored = open_labelled(tmp_path).val
    assert scored.split == 'Valid' and not scored.notes
    assert open_labelled(tmp_path, 'test').val.split == 'test'
    assert open_labelled(tmp_path, tmp_path / 'test').val.root == str(
        tmp_path / 'test')


def test_training_images_among_the_scored_ones_are_counted(tmp_path):
    write_images(tmp_path / 'a', 3)
    names = [f'a/{p.name}' for p in sorted((tmp_path / 'a').iterdir())]
    rows = [f'{names[0]},a,train', f'{names[1]},b,train']
    rows += [f'{names[1]},b,val', f'{names[2]},a,val']
    file = tmp_path / 'list.csv'
    file.write_text('\n'.join(['path,label,split', *rows]))
    images = open_labelled(file)
    assert '; 1 of them are training images' in images.val.describe()
    assert 'training images' not in images.train.describe()
    assert open_labelled(file, 'val').val.notes == images.val.notes


def test_lists_of_both_tasks_are_read_alike(tmp_path):
    """Repeated rows are skipped, and an image has one label."""
    write_images(tmp_path, 6)
    rows = [f'{n:03}.jpg,{"ab"[n % 2]},{"train" if n < 4 else "val"}'
            for n in range(6)]
    file = tmp_path / 'list.csv'
    file.write_text('\n'.join(['path,label,split', *rows, rows[0]]))
    train = open_labelled(file).train
    assert len(train) == len(train.labels) == 4
    assert '1 repeated rows are skipped' in train.describe()
    file.write_text('\n'.join(
        ['path,label,split', *rows, './000.jpg,b,train']))
    with pytest.raises(EvaluationDataError, match="two labels, 'a' and 'b'"):
        open_labelled(file)
    file.write_text('\n'.join(['path,label,split', *rows]))
    with pytest.raises(EvaluationDataError, match="no part 'dev', and there"):
        open_labelled(file, 'dev')


def _remove_val(root):
    for f in sorted((root / 'val').rglob('*'), reverse=True):
        f.unlink() if f.is_file() else f.rmdir()
    (root / 'val').rmdir()


def _other_class(root):
    write_images(root / 'val/other', 1)


# A change of the data, overrides, and the message.
BAD_INPUT = [
    (_remove_val, [], 'has no part val .or valid'),
    (_other_class, [],
     "'other' in the validation data and not in the training data"),
    (None, ['model.backbone.patch_size=8'],
     'patches of 4 pixels(.|\n)*patches of 8 pixels'),
    (None, ['model.backbone.arch.embed_dims=64'], '48 wide(.|\n)*64 wide'),
]


def test_bad_input_ends_in_one_sentence(pretraining, tmp_path):
    config, checkpoint = pretraining
    commands = []
    for number, (change, options, _) in enumerate(BAD_INPUT):
        root = tmp_path / str(number)
        for split in ('train', 'val'):
            for c in range(2):
                write_images(root / split / f'class{c}', 6)
        if change is not None:
            change(root)
        commands.append(
            ['knn', root, checkpoint, '--work-dir', tmp_path / 'work',
             *(['--config', config, '--cfg-options', *options]
               if options else [])])
    results = run_commands(*commands)
    for (_, _, message), (status, output) in zip(BAD_INPUT, results):
        assert status == 1
        assert 'Traceback' not in output, output
        assert re.search(message, output[output.index('cmae knn: '):]), output


def test_cifar10_as_class_folders(tmp_path, monkeypatch):
    """The download's format, but for the download itself."""
    import pickle

    from mmpretrain.datasets import CIFAR10
    monkeypatch.syspath_prepend(str(ROOT / 'tools/datasets'))
    import make_cifar10
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    batch = tmp_path / 'download/cifar-10-batches-py/test_batch'
    batch.parent.mkdir(parents=True)
    batch.write_bytes(
        pickle.dumps(dict(data=data.reshape(4, -1), labels=[3, 0, 3, 9])))
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    dataset = CIFAR10(
        data_root=str(tmp_path / 'download'), split='test', pipeline=[])
    for _ in range(2):  # the second time nothing is written
        assert make_cifar10.write_images(dataset, tmp_path / 'test') == 4
    # the first of each class alone, and none mixed in
    one = tmp_path / 'one'
    assert make_cifar10.write_images(dataset, one, per_class=1) == 3
    assert sorted(p.name for p in one.glob('*/*')) == [
        '00000.png', '00001.png', '00003.png']
    with pytest.raises(FileExistsError, match='has 1 more images, such as '):
        make_cifar10.write_images(dataset, tmp_path / 'test', per_class=1)
    written = DATASETS.build(
        dict(type='LabelledDataset', data_root=str(tmp_path),
             data_prefix='test', pipeline=[dict(type='LoadImageFromFile')]))
    assert written.metainfo['classes'] == tuple(sorted(CIFAR10.METAINFO[
        'classes']))
    assert [written[i]['gt_label'] for i in range(4)] == [0, 3, 3, 9]
    for i, place in enumerate((1, 0, 2, 3)):
        rgb = written[i]['img'][..., ::-1]
        assert (rgb == data[place].transpose(1, 2, 0)).all()


def test_tiny_imagenet_as_class_folders(tmp_path, monkeypatch):
    """The original archive, and one of class folders."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/datasets'))
    from make_tiny_imagenet import unpack
    with zipfile.ZipFile(tmp_path / 'original.zip', 'w') as archive:
        for name in ('train/n1/images/n1_0.JPEG', 'train/n1/images/n1_1.JPEG',
                     'train/n1/n1_boxes.txt', 'val/images/val_0.JPEG',
                     'val/images/val_1.JPEG', 'test/images/test_0.JPEG'):
            archive.writestr(f'tiny/{name}', name)
        archive.writestr('tiny/val/val_annotations.txt',
                         'val_0.JPEG\tn2\t0\t0\nval_1.JPEG\tn1\t0\t0\n')
    with zipfile.ZipFile(tmp_path / 'folders.zip', 'w') as archive:
        for name in ('train/n1/a.JPEG', 'train/n2/b.JPEG', 'val/n2/c.JPEG'):
            archive.writestr(f'tiny/{name}', name)
    assert unpack(tmp_path / 'original.zip', tmp_path / 'a', (1, 5)) == dict(
        train=1, val=2)
    assert unpack(tmp_path / 'folders.zip', tmp_path / 'b') == dict(
        train=2, val=1)
    assert unpack(tmp_path / 'original.zip', tmp_path / 'd', (2, 0, 1)
                  ) == dict(train=2, test=2)
    assert unpack(tmp_path / 'folders.zip', tmp_path / 'e', half=2) == dict(
        train=1, val=1)
    found = sorted(p.relative_to(tmp_path).as_posix()
                   for p in tmp_path.glob('[ab]/**/*.JPEG'))
    assert found == [
        'a/train/n1/n1_0.JPEG', 'a/val/n1/val_1.JPEG', 'a/val/n2/val_0.JPEG',
        'b/train/n1/a.JPEG', 'b/train/n2/b.JPEG', 'b/val/n2/c.JPEG']
    with zipfile.ZipFile(tmp_path / 'empty.zip', 'w') as archive:
        archive.writestr('README', '')
    with pytest.raises(ValueError, match='has no {train,val}/<class>/'):
        unpack(tmp_path / 'empty.zip', tmp_path / 'c')
