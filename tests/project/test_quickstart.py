import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, build, model_cfg, run_tool, write_images
from mmpretrain.registry import MODELS
from PIL import Image

from cmae_mm.checkpoints import export_encoder
from cmae_mm.evaluation.features import FeatureSet

sys.path.insert(0, str(ROOT / 'tools/quickstart'))
import make_mosaics  # noqa: E402
import make_tiles  # noqa: E402
import quickstart_steps  # noqa: E402

QUICKSTART = 'tools/quickstart/quickstart.py'


def test_tiles(tmp_path):
    assert make_tiles.make_tiles(tmp_path, train=43, val=20, size=16) == 63
    for split, count in (('train', 43), ('val', 20)):
        files = list((tmp_path / split).glob('*/*.jpg'))
        assert len(files) == count
        assert len({f.parent.name for f in files}) == 20
        assert Image.open(files[0]).size == (16, 16)
    stamp = (tmp_path / 'train/coffee/0000.jpg').stat().st_mtime_ns
    make_tiles.make_tiles(tmp_path, train=43, val=20, size=16)
    assert (tmp_path / 'train/coffee/0000.jpg').stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="other settings, .*'size': 16"):
        make_tiles.make_tiles(tmp_path, train=43, val=20, size=24)


def test_halves_share_no_pixel():
    for shape in ((7, 10), (10, 7)):
        numbered = np.arange(70, dtype=np.uint8).reshape(shape)
        parts = make_tiles.halves(Image.fromarray(numbered))
        train, val = (set(np.asarray(parts[s]).ravel().tolist())
                      for s in ('train', 'val'))
        assert not train & val and train | val == set(range(70))


def test_mosaics(tmp_path):
    def make():
        make_mosaics.make_mosaics(tmp_path, dict(train=3, val=2), size=24,
                                  parts=4, seed=0)

    make()
    for split, count in (('train', 3), ('val', 2)):
        maps = sorted((tmp_path / 'maps' / split).iterdir())
        images = sorted((tmp_path / 'images' / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in maps]
        assert len(maps) == count
        for image, labels in zip(images, maps):
            assert Image.open(image).size == Image.open(labels).size == (24,
                                                                         24)
            classes = np.unique(np.asarray(Image.open(labels)))
            assert 2 <= len(classes) <= 4
            assert classes.min() >= 1 and classes.max() <= 20
    stamp = maps[0].stat().st_mtime_ns
    make()
    assert maps[0].stat().st_mtime_ns == stamp


def test_mosaics_of_other_settings_are_not_mixed(tmp_path):
    tool = ROOT / 'tools/quickstart/make_mosaics.py'
    few = ['--train', '1', '--val', '1', '--size', '16']
    for words, said in (([*few, '--parts', '30'], 'has 1 to 20 parts'),
                        (few, ''),
                        ([*few, '--seed', '1'], 'delete it, or name another')):
        done = subprocess.run([sys.executable, tool, tmp_path / 'out', *words],
                              capture_output=True, text=True)
        assert done.returncode == (2 if said else 0)
        assert said in done.stderr and 'Traceback' not in done.stderr
    assert len(list((tmp_path / 'out').glob('images/*/*'))) == 2


def test_a_part_of_a_mosaic_shows_the_photograph_of_its_map():
    colours = [Image.new('RGB', (40, 30), (10 * n, 0, 0)) for n in range(6)]
    image, labels = make_mosaics.make_mosaic(
        colours, 32, 5, np.random.default_rng(0))
    assert (image[..., 0] == 10 * (labels.astype(int) - 1)).all()
    assert len(np.unique(labels)) > 2


def test_each_pixel_of_a_mosaic_belongs_to_the_nearest_point():
    where = make_mosaics.draw_parts(9, 4, np.random.default_rng(3))
    points = np.random.default_rng(3).uniform(0, 9, (4, 2))
    for y in range(9):
        for x in range(9):
            away = [(y + .5 - p)**2 + (x + .5 - q)**2 for p, q in points]
            assert where[y, x] == int(np.argmin(away))


def test_fifth_is_held_out_without_validation_images(tmp_path):
    for c in range(2):
        write_images(tmp_path / f'class{c}', 1)
    labels = quickstart_steps.find_labels(tmp_path)
    assert labels == ('', None)
    cfg = quickstart_steps.evaluation_cfg(tmp_path, labels)
    assert cfg['train'] == cfg['val']
    train, val = quickstart_steps.hold_out(
        FeatureSet(torch.arange(11.)[:, None], torch.arange(11)))
    assert val.labels.tolist() == [0, 5, 10]
    assert train.labels.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    assert train.features[:, 0].tolist() == train.labels.tolist()


def test_quickstart_end_to_end(image_root, tmp_path):
    """The whole command on labelled images, cut short."""
    run_tool(sys.executable, QUICKSTART, '--data', image_root, '--work-dir',
             tmp_path, '--max-iters', 4)
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert set(summary) == {
        'knn_top1', 'knn_top1_random_init', 'loss_first', 'loss_last',
        'images', 'minutes'
    }
    assert summary['images'] == 24
    assert 0 <= summary['knn_top1'] <= 100
    for name in ('reconstruction.png', 'loss.png'):
        picture = np.asarray(Image.open(tmp_path / name).convert('RGB'))
        assert picture.std() > 10, name
    backbone = MODELS.build(
        dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=128,
                num_layers=4,
                num_heads=4,
                feedforward_channels=512),
            img_size=64,
            patch_size=8,
            init_cfg=dict(
                type='Pretrained',
                checkpoint=str(tmp_path / 'backbone.pth'),
                prefix='backbone.')))
    backbone.init_weights()
    saved = torch.load(
        tmp_path / 'backbone.pth', weights_only=True)['state_dict']
    for name, value in backbone.state_dict().items():
        assert torch.equal(saved[f'backbone.{name}'], value), name


def test_quickstart_takes_a_plain_folder(tmp_path):
    write_images(tmp_path / 'photos', 5)
    shown = run_tool(sys.executable, QUICKSTART, '--data',
                     tmp_path / 'photos', '--work-dir', tmp_path / 'out',
                     '--max-iters', 2)
    # No line that a newcomer must wonder about: these are in output.txt.
    assert 'step 2 of 2, loss' in shown and 's left' in shown
    for noise in ('Warning', 'WARNING', 'mmengine', 'OneDL', 'deprecat'):
        assert noise not in shown
    assert 'mmengine - INFO' in (tmp_path / 'out/output.txt').read_text()
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert summary['knn_top1'] is None and summary['images'] == 5


def test_exported_encoder_gives_the_same_tokens(tmp_path):
    model = build(model_cfg()).eval()
    export_encoder(model, str(tmp_path / 'vit.pth'), epoch=3)
    vit = MODELS.build(
        dict(
            type='VisionTransformer',
            arch=model_cfg().backbone.arch,
            img_size=32,
            patch_size=4,
            out_type='raw',
            init_cfg=dict(
                type='Pretrained',
                checkpoint=str(tmp_path / 'vit.pth'),
                prefix='backbone.')))
    vit.init_weights()
    vit.eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        vit(image)[-1], model.extract_feat(image, pool='none'))


def test_help_installs_nothing():
    env = {k: v for k, v in os.environ.items()
           if k not in ('VIRTUAL_ENV', 'CONDA_PREFIX')}
    done = subprocess.run(
        ['bash', ROOT / 'tools/quickstart.sh', '--help'], text=True,
        capture_output=True, env=dict(env, PYTHON='false'))
    assert done.returncode == 0 and 'Usage: bash' in done.stdout
