"""Views, reconstructions, attention, features and maps, by the commands."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build, model_cfg, run_commands, runner_cfg, write_images
from mmengine.config import Config
from PIL import Image, ImageDraw

from cmae_mm.apis import pictures
from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.apis.encoder import load_encoder
from cmae_mm.apis.images import pick_images
from cmae_mm.checkpoints import (CheckpointError, export_encoder,
                                 load_pretraining_model)
from cmae_mm.engine import ResumableRunner
from cmae_mm.visualization import colour_features, prediction_columns
from cmae_mm.visualization.attention import attention_maps, attention_weights
from cmae_mm.visualization.image_grid import draw_grid, label_files, to_rgb
from cmae_mm.visualization.projection import find_nearest, project
from cmae_mm.visualization.reconstruction import (PREDICTED, RESTORED,
                                                  draw_views)


@pytest.fixture(scope='module')
def trained(image_root, tmp_path_factory):
    """A checkpoint as training saves it, with its config as text."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = runner_cfg(image_root, folder)
    cfg.model = model_cfg(img_size=32)
    ResumableRunner.from_cfg(cfg).train()
    return folder / 'iter_2.pth'


def test_a_view_is_a_window_of_the_canvas(image_root, tmp_path):
    """Both kinds of views: windows where the frames say."""
    whole = runner_cfg(image_root, tmp_path)
    whole.data_preprocessor.update(jitter_prob=0, grey_prob=0, blur_prob=0)
    cfg = Config(whole.to_dict())
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='SeedDraws'),
        dict(type='LoadCanvas', size=40),
        dict(type='PixelShift', size=32, max_shift=8),
        dict(type='PackInputs')]
    cfg.data_preprocessor = dict(
        type='SelfSupDataPreprocessor', mean=[120.] * 3, std=[60.] * 3,
        to_rgb=True)
    for one in (cfg, whole):
        columns, shifts = draw_views(one, 3)
        canvas, online, seen, target = columns.values()
        assert len(shifts) == 3 and len(set(shifts)) > 1
        for i, (y, x) in enumerate(shifts):
            # without the frames, which are one pixel wide
            for view, top, left in ((online, 0, 0), (target, y, x)):
                cut = canvas[i][top + 9:top + 31, left + 9:left + 31]
                same = np.abs(cut.astype(int)
                              - view[i][9:31, 9:31].astype(int)) <= 1
                assert same.all(axis=2).mean() > 0.9
        # Masked patches are grey.
        grey = (np.abs(seen[0].astype(int) - 128) <= 1).all(axis=2)
        assert 0.4 < grey.mean() < 0.9
        assert (seen[0][~grey] == online[0][~grey]).all()


def test_views_need_a_pretraining_config():
    with pytest.raises(ValueError, match="type 'CMAE'"):
        draw_views(Config(dict(model=dict(type='ImageClassifier'))))


def test_a_restored_patch_has_its_own_mean_and_deviation():
    model = build(model_cfg()).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        mask = model.backbone.generate_mask(2, 'cpu')
        from cmae_mm.visualization import reconstruct
        made = reconstruct(model, images, mask)
        head = model.head.reconstruction
        true, raw, restored = map(head.patchify, (
            images, made['prediction'], made['reconstruction']))
    # Visible patches are the input's; of the others the pattern is that of
    # the prediction, and its scale the true patch's.
    torch.testing.assert_close(restored[~mask], true[~mask])
    scale = (true.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = raw * scale + true.mean(-1, keepdim=True)
    torch.testing.assert_close(restored[mask], expected[mask])
    model.data_preprocessor.mean = torch.zeros(3, 1, 1)
    model.data_preprocessor.std = torch.ones(3, 1, 1)
    assert list(prediction_columns(model, images, mask)) == [
        'input', 'masked', PREDICTED, RESTORED]
    head.norm_pix = False
    assert list(prediction_columns(model, images, mask)) == [
        'input', 'masked', 'reconstruction']


def test_pictures_have_the_crop_of_the_checkpoint(tmp_path):
    """A folder whose images are cropped by less than the default 224/256."""
    export_encoder(build(model_cfg(data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[100.] * 3, std=[50.] * 3,
        to_rgb=True))), str(tmp_path / 'hf'), 'hf')
    settings = tmp_path / 'hf/preprocessor_config.json'
    settings.write_text(json.dumps(dict(
        json.loads(settings.read_text()), size=dict(shortest_edge=32))))
    write_images(tmp_path / 'photos', 1, size=60)
    encoder = load_encoder(tmp_path / 'hf')
    picked = pick_images([tmp_path / 'photos'], 1)
    _, shown, inputs = pictures._prepare(encoder, picked, None)
    assert torch.equal(inputs[0], encoder.preprocess(picked[0].path))
    whole = Image.open(picked[0].path).resize((32, 32), Image.BICUBIC)
    assert np.abs(shown[0] * 1. - np.asarray(whole)).mean() < 2
    small = pictures._crop_of(encoder, 16)
    assert (small.size, small.short_side) == ((16, 16), 16)


def test_attention_weights_match_the_layer():
    """Weights that are computed again, put to the values, give its output."""
    backbone = build(model_cfg()).eval().backbone
    images = torch.randn(2, 3, 32, 32)
    attention = backbone.layers[-1].attn
    taken = []
    attention.register_forward_hook(
        lambda module, args, out: taken.append((args[0], out)))
    with torch.no_grad():
        maps_ = attention_maps(backbone, images)
        tokens, out = taken[0]
        weights = attention_weights(attention, tokens)
        n, t, d = tokens.shape
        values = attention.qkv(tokens)[..., 2 * d:].view(
            n, t, attention.num_heads, -1).transpose(1, 2)
        mine = attention.proj((weights @ values).transpose(1, 2).reshape(
            n, t, d))
    torch.testing.assert_close(mine, out, rtol=1e-4, atol=1e-5)
    assert maps_.shape == (2, 4, 64)
    torch.testing.assert_close(maps_, weights[:, :, 0, 1:])


def test_colours_are_the_principal_components():
    from sklearn.decomposition import PCA
    features = torch.randn(2, 16, 6) * torch.tensor([5., 3., 2., .1, .1, .1])
    colours = colour_features(features)
    assert colours.shape == (2, 4, 4, 3)
    scores = PCA(3).fit_transform(features.reshape(-1, 6).numpy())
    for k in range(3):
        correlation = np.corrcoef(scores[:, k],
                                  colours.reshape(-1, 3)[:, k])[0, 1]
        assert abs(correlation) > 0.99
    # A colour means the same in every picture, whatever their order.
    assert (colour_features(features.flip(0)) == colours[::-1]).all()


def test_the_nearest_are_those_of_a_brute_search():
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(20, 5)), rng.normal(size=(3, 5))
    for query, found in zip(queries, find_nearest(features, queries, 4)):
        cosines = [f @ query / np.linalg.norm(f) / np.linalg.norm(query)
                   for f in features]
        order = sorted(range(20), key=lambda i: -cosines[i])[:4]
        assert [i for i, _ in found] == order
        assert found[0][1] == pytest.approx(cosines[order[0]], abs=1e-5)


def test_groups_stay_together_on_a_map():
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:2].repeat(15, axis=0)
    places = project(centres + rng.normal(scale=0.05, size=(30, 8)), 'tsne')
    assert places.min() >= 0 and places.max() <= 1
    middle = places.reshape(2, 15, 2).mean(axis=1)
    own = np.linalg.norm(places - middle.repeat(15, axis=0), axis=1)
    other = np.linalg.norm(places - middle[::-1].repeat(15, axis=0), axis=1)
    assert (own < other).all()
    assert project(np.eye(3), 'tsne').shape == (3, 2)


def test_a_sheet_shows_each_picture_once():
    shades = [np.full((8, 8, 3), v, np.uint8) for v in (10, 90, 170)]
    sheet = np.asarray(draw_grid({'a': shades, 'b': shades[::-1]}, 2, 2))
    for value in (10, 90, 170):
        assert (sheet == value).all(axis=2).sum() == 2 * 16 * 16
    normal = (torch.full((1, 3, 2, 2), 200.) - 120) / 60

    class Preprocessor:
        mean, std = torch.tensor(120.), torch.tensor(60.)

    assert (to_rgb(normal, Preprocessor) == 200).all()


def _texts(monkeypatch, label):
    """Give what is written below a small picture, and in which font."""
    written = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, 'text',
        lambda self, place, text, *args, **kw: written.append(
            (text, kw.get('font'))) or draw(self, place, text, *args, **kw))
    draw_grid({'a': [np.zeros((90, 90, 3), np.uint8)]}, labels=[label])
    return written[0]  # the column's title comes after it


def _drawn(letter, font):
    picture = Image.new('L', (20, 20))
    ImageDraw.Draw(picture).text((2, 2), letter, fill='white', font=font)
    return np.asarray(picture)


def test_names_below_pictures_can_be_read(monkeypatch):
    name = 'größe Δ Ж é.tif'
    text, font = _texts(monkeypatch, name)
    assert text == name
    # A letter that a font lacks looks like one that no font has.
    lacking = _drawn('\uffff', font)
    assert not any((_drawn(c, font) == lacking).all() for c in name)
    long, font = _texts(monkeypatch, 'folder/of/many/' * 9 + 'last.tif')
    assert long.startswith('...') and long.endswith('last.tif')
    assert font.getlength(long) <= 94
    folder = Path('data')
    assert label_files([folder / 'a/0.tif', folder / 'b/1.tif']) == [
        '0.tif', '1.tif']
    assert label_files([folder / 'a/0.tif', folder / 'b/0.tif']) == [
        'a/0.tif', 'b/0.tif']
    assert label_files([folder / 'a/0.tif', folder / 'a/0.tif']) == [
        '0.tif'] * 2


def test_a_map_has_the_colours_of_classes(image_root, trained, tmp_path,
                                          monkeypatch):
    """Also if the classes are in the folders of parts."""
    drawn = []
    monkeypatch.setattr(
        'cmae_mm.visualization.projection.draw_map',
        lambda places, thumbnails, groups: drawn.append(set(groups)) or
        Image.new('RGB', (8, 8)))
    for data in (image_root, image_root / 'val'):
        pictures.map_images(data, trained, tmp_path / 'map.png',
                            method='tsne', num_workers=0)
    assert drawn == [{'class0', 'class1'}] * 2


def test_commands_write_their_pictures(trained, image_root, tmp_path):
    data = image_root / 'val'
    photo = data / 'class0/001.jpg'
    model, here = str(trained), dict(cwd=tmp_path)
    results = run_commands(
        ['views', 'cmae_vit-mini_tiles', '--most', '2', '--json'],
        ['reconstruct', model, data, '--most', '3', '--json'],
        ['attention', model, photo, '--heads', '--layer', '1', '--json'],
        ['features', model, data, '--out', 'sub/f.png', '--json'],
        ['map', data, model, '--method', 'tsne', '--num-workers', '0',
         '--features', 'kept.npz', '--json'],
        ['nearest', data, model, photo, '--count', '2', '--num-workers', '0',
         '--features', 'kept.npz', '--json'],
        ['attention', model, photo, '--layer', '3'],
        ['reconstruct', model, 'nothing.jpg'],
        ['map', data, model, '--out', 'map.svg'],
        DATA_ROOT=str(image_root), **here)
    for code, output in results[:6]:
        assert code == 0, output[-2000:]
    said = [json.loads(output.strip().splitlines()[-1])
            for _, output in results[:6]]
    for one, columns in zip(said, (4, 4, 6, 2)):
        picture = np.asarray(Image.open(tmp_path / one['out']).convert('RGB'))
        assert len(one['columns']) == columns and picture.std() > 10
    assert len(said[1]['images']) == 3
    assert 'standard deviation of the input patch' in results[1][1]
    assert said[4]['images'] == 8 and (tmp_path / 'map.png').is_file()
    found = said[5]['found'][str(photo)]
    assert len(found) == 2 and 'class0/001.jpg' not in dict(found)
    assert found[0][1] >= found[1][1]
    for (code, output), words in zip(results[6:], (
            'layer must be from 1 to 2', 'image nothing.jpg does not exist',
            'must be a .png or .jpg or .jpeg or .webp file')):
        assert code == 1 and words in output
        assert len(output.strip().splitlines()) == 1 or 'mmengine' in output


def test_unreadable_images_are_skipped_and_named(
        trained, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / 'a', 3)
    (tmp_path / 'a/broken.jpg').write_bytes(b'no image')
    encoders = []
    monkeypatch.setattr(
        'cmae_mm.apis.encoder.load_encoder',
        lambda *args, **kwargs: encoders.append(
            load_encoder(*args, **kwargs)) or encoders[-1])
    monkeypatch.chdir(tmp_path)
    folder, broken = tmp_path / 'a', tmp_path / 'a/broken.jpg'
    for function in (pictures.reconstruct, pictures.attention,
                     pictures.features):
        assert broken not in function(trained, [folder]).images
        text = capsys.readouterr().out
        assert 'broken.jpg cannot be decoded' in text
        assert '1 images could not be read' in text
        with pytest.raises(ArgumentError, match='none of the 1 images'):
            function(trained, [broken])
    del encoders[:]
    found = pictures.nearest(folder, trained, [folder, broken], num_workers=0)
    assert len(found.found) == 3 and len(encoders) == 1
    assert '1 images could not be read' in capsys.readouterr().out
    found = pictures.map_images(folder, trained, method='tsne', num_workers=0)
    assert len(found.paths) == 3 and len(encoders) == 2
    assert '1 images could not be read' in capsys.readouterr().out


def test_a_checkpoint_without_decoder_or_config_is_refused(trained, tmp_path):
    whole = torch.load(trained, weights_only=False)
    for kept, message in (
            ({k: v for k, v in whole['state_dict'].items()
              if k.startswith('backbone.')}, 'without pixel decoder'),
            (whole['state_dict'], 'does not contain its config')):
        torch.save(dict(state_dict=kept), tmp_path / 'part.pth')
        with pytest.raises(CheckpointError, match=message):
            load_pretraining_model(tmp_path / 'part.pth')
    whole['meta']['cfg'] = 'import os'
    torch.save(whole, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='code in configs is not run'):
        load_pretraining_model(tmp_path / 'evil.pth')
    model, _ = load_pretraining_model(trained)
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole['state_dict'][name]), name


def test_umap_is_used_if_installed(image_root, trained, tmp_path, monkeypatch):
    write_images(tmp_path / 'one', 1)
    with pytest.raises(ArgumentError, match='at least two images'):
        pictures.map_images(tmp_path / 'one', trained, tmp_path / 'm.png',
                        method='tsne', num_workers=0)
    from cmae_mm.visualization import projection
    for there, method in ((True, 'umap'), (None, 'tsne')):
        monkeypatch.setattr(projection.importlib.util, 'find_spec',
                            lambda name, there=there: there)
        assert projection.choose_method() == method
