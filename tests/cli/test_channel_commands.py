"""Images of 1, 4 and 6 channels through the commands, to timm and back."""
import json

import numpy as np
import pytest
import tifffile
import torch
from helpers import DEEP, run_commands
from PIL import Image
from safetensors.torch import load_file

import cmae_mm
from cmae_mm.datasets.stats import read_image_stats

# Channels and type, and what values are below.
KINDS = {1: ('uint16', 4096), 4: ('uint8', 256), 6: ('float32', 3.)}
SPLITS = (('train', 4), ('val', 2))


def write_tiffs(root, channels, dtype, high):
    """Write smooth images of two classes."""
    rng = np.random.default_rng(channels)
    for split, count in SPLITS:
        for label in range(2):
            folder = root / f'data{channels}/{split}/class{label}'
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = rng.uniform(0, high, (8, 8, channels))
                image = np.kron(coarse, np.ones((8, 8, 1))).astype(dtype)
                tifffile.imwrite(folder / f'{i}.tif', image.squeeze(),
                                 photometric='minisblack',
                                 **(dict(planarconfig='contig')
                                    if channels > 1 else {}))


def lines_for(channels):
    """Command lines on images with several channels; trains two steps."""
    data, out = f'data{channels}', f'out{channels}'
    config, checkpoint = f'{out}/config.py', f'{out}/epoch_1.pth'
    lines = [
        ['stats', data, '--out', f'{channels}.json', '--num-workers', '0',
         *(['--channels', '4'] if channels == 4 else [])],
        ['pretrain', data, '--model', 'mini', '--stats', f'{channels}.json',
         '--epochs', '1', '--batch-size', '4', '--num-workers', '0', '--out',
         out, '--cfg-options', 'default_hooks.logger.interval=1'],
        ['export', config, checkpoint, f'{out}/timm.safetensors', '--to',
         'timm'],
        ['embed', data, checkpoint, '--out', f'{out}/f.npz',
         '--num-workers', '0'],
    ]
    if channels == 6:
        load = ['--num-workers', '0', '--batch-size', '4', '--json']
        lines += [
            ['knn', data, checkpoint, '--ks', '3', *load],
            ['linear', data, checkpoint, '--epochs', '2', *load],
            ['low-shot', data, checkpoint, '--shots', '1', '--trials', '1',
             *load],
            ['views', config, '--out', 'views.png', '--most', '3', '--show',
             '5', '2', '0'],
            ['reconstruct', checkpoint, data, '--most', '3', '--show', '1'],
            ['attention', checkpoint, f'{data}/val', '--most', '3'],
            ['features', checkpoint, data, '--most', '3', '--show', '4'],
            ['map', data, checkpoint, '--features', f'{out}/f.npz',
             '--method', 'tsne', '--num-workers', '0'],
            ['nearest', data, checkpoint, f'{data}/val/class0/1.tif',
             '--features', f'{out}/f.npz', '--num-workers', '0', '--count',
             '3'],
            ['train', 'finetune_vit-mini_10e', '--work-dir', 'tuned',
             '--cfg-options', 'image_stats=6.json',
             f'model.backbone.init_cfg.checkpoint={checkpoint}',
             'data_preprocessor.mean=None', 'data_preprocessor.std=None',
             'model.backbone.arch=mini', 'model.backbone.img_size=64',
             'model.backbone.patch_size=8', 'model.head.in_channels=128',
             'model.head.num_classes=2', 'data_preprocessor.num_classes=2',
             'train_dataloader.dataset.pipeline.2.scale=64',
             'val_dataloader.dataset.data_prefix=val',
             'train_dataloader.batch_size=4', 'val_dataloader.batch_size=4',
             *(f'{split}_dataloader.{key}' for split in ('train', 'val')
               for key in ('num_workers=0', 'persistent_workers=False')),
             'train_cfg.max_epochs=1', 'param_scheduler=[]'],
            ['embed', data, 'tuned/epoch_1.pth', '--out', 'tuned/f.npz',
             '--num-workers', '0'],
        ]
    return lines


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Run all of them in one process."""
    root = tmp_path_factory.mktemp('channels')
    for channels, (dtype, high) in KINDS.items():
        write_tiffs(root, channels, dtype, high)
    lines = [line for channels in KINDS for line in lines_for(channels)]
    results = run_commands(*lines, cwd=root, DATA_ROOT=str(root / 'data6'))
    for line, (code, output) in zip(lines, results):
        assert code == 0, (line, output[-3000:])
    return root, {line[0]: output for line, (_, output) in zip(lines, results)}


@pytest.mark.parametrize('channels', KINDS)
def test_two_steps_then_timm_and_back(done, channels):
    timm = pytest.importorskip('timm')
    root, _ = done
    out = root / f'out{channels}'
    state = torch.load(out / 'epoch_1.pth', weights_only=False)
    assert state['meta']['iter'] == 2
    weight = state['state_dict']['neck.pixel_decoder.decoder_pred.weight']
    assert len(weight) == 64 * channels
    encoder = cmae_mm.load_encoder(out / 'epoch_1.pth')
    vit = timm.models.VisionTransformer(
        img_size=64, patch_size=8, in_chans=channels, embed_dim=128, depth=4,
        num_heads=4, num_classes=0).eval()
    vit.load_state_dict(load_file(out / 'timm.safetensors'))
    again = cmae_mm.load_encoder(out / 'timm.safetensors')
    with np.load(out / 'f.npz') as file:
        paths, features = file['paths'], file['features']
    assert features.shape == (12, 128) and np.isfinite(features).all()
    path = root / f'data{channels}' / str(paths[3])
    image = encoder.preprocess(path)[None]
    with torch.no_grad():
        tokens = vit.forward_features(image)[:, 1:]
        # a batch of one is not summed up as one of twelve
        assert np.allclose(encoder(image), features[3], atol=1e-5)
        assert torch.equal(again(again.preprocess(path)[None]),
                           encoder(image))
    torch.testing.assert_close(
        tokens.mean(1), encoder(image), atol=1e-5, rtol=1e-4)
    # as the file is, normalised by its statistics
    stats = read_image_stats(root / f'{channels}.json')
    assert (stats['channels'], stats['dtype']) == (
        channels, DEEP if channels == 1 else KINDS[channels][0])
    raw = tifffile.imread(path).reshape(64, 64, channels)
    assert encoder.mean.flatten().tolist() == pytest.approx(stats['mean'])
    assert torch.equal(encoder.preprocess(raw), image[0])


def test_pictures_are_made_of_six_channels(done):
    root, _ = done
    for name in ('views', 'reconstruction', 'attention', 'features', 'map',
                 'nearest'):
        with Image.open(root / f'{name}.png') as picture:
            pixels = np.asarray(picture.convert('RGB')).astype(float)
        assert pixels.std() > 10, name
        coloured = np.ptp(pixels, axis=-1).max() > 30
        # one channel, or the mean of all, is grey
        assert coloured == (name in ('views', 'attention', 'features', 'map')
                            ), name


def test_evaluations_and_fine_tuning_take_six_channels(done):
    root, said = done
    for name in ('knn', 'linear', 'low-shot'):
        result = json.loads(said[name].strip().splitlines()[-1])
        assert 0 <= result.get('top1', result.get('1')) <= 100
    # the fine-tuned classifier contains its decoding settings
    encoder = cmae_mm.load_encoder(root / 'tuned/epoch_1.pth')
    assert encoder.in_channels == 6 and encoder.backbone.num_layers == 4
    with np.load(root / 'tuned/f.npz') as file:
        assert file['features'].shape == (12, 128)
        assert not len(file['skipped'])
