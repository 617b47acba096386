"""Image statistics of `cmae stats` in configs."""
import pytest
from mmengine.config import Config

from cmae_mm.apis.pretraining import plan_pretraining
from cmae_mm.config import load_config
from cmae_mm.datasets.stats import ImageStatsError, write_image_stats
from cmae_mm.image_config import ImageStatsConflict, value_range_of


def stats_file(folder, channels=4, dtype='uint16', **more):
    """Write plausible statistics; each channel has its own."""
    stats = dict(
        images=8, channels=channels, dtype=dtype,
        mean=[100. + 10 * c for c in range(channels)],
        std=[20. + c for c in range(channels)],
        min=[50.] * channels,
        max=[50000. if dtype == 'uint16' else 250.] * channels, **more)
    path = folder / f'{channels}_{dtype}.json'
    write_image_stats(stats, path)
    return path, stats


def find(cfg, kind, split='train'):
    pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
    return next(t for t in pipeline if t['type'] == kind)


@pytest.mark.parametrize('name', [
    'cmae_vit-b_300e', 'mae_vit-b_300e', 'cmae_vit-mini_tiles'])
def test_a_pretraining_takes_all_of_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, stats = stats_file(tmp_path, settings=dict(
        channels=4, dtype='uint16', bands=[0, 2, 5, 7], fill=None))
    cfg = load_config(name, [f'image_stats={path.name}'])
    preprocessor = cfg.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == (
        stats['mean'], stats['std'])
    assert (preprocessor.dtype, preprocessor.to_rgb) == ('uint16', False)
    # the least value, and four deviations above the mean
    assert preprocessor.value_range == (
        [50., 50., 50., 50.], [180., 194., 208., 222.])
    assert cfg.model.backbone.in_channels == 4
    loading = find(cfg, 'LoadCanvas')
    assert (loading.channels, loading.dtype, loading.bands) == (
        4, 'uint16', [0, 2, 5, 7])
    # written and read again it needs the file no more
    path.unlink()
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    assert load_config('config.py').to_dict() == cfg.to_dict()
    assert cfg.image_stats['file'] == str(path)


def test_colours_of_8_bits_are_normalised_and_no_more(tmp_path):
    path, stats = stats_file(tmp_path, 3, 'uint8')
    for name, kind in (('cmae_vit-b_300e', 'TwoViewDataPreprocessor'),
                       ('cmae_vit-mini_tiles', 'TwoViewDataPreprocessor'),
                       ('vit-b_pt300e_100e_in1k', 'ClsDataPreprocessor')):
        plain = load_config(name)
        cfg = load_config(name, [f'image_stats={path}'])
        assert cfg.data_preprocessor.type == kind
        assert cfg.data_preprocessor.mean == stats['mean']
        for key in ('mean', 'std'):
            cfg.data_preprocessor[key] = plain.data_preprocessor[key]
        cfg.pop('image_stats')
        assert cfg.to_dict() == plain.to_dict()


def test_a_classifier_gets_pipelines_for_such_images(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmengine.logging.print_log',
                        lambda text, **kwargs: said.append(text))
    path, stats = stats_file(tmp_path, 6, 'float32')
    cfg = load_config('vit-b_pt300e_100e_in1k', [f'image_stats={path}'])
    preprocessor = cfg.data_preprocessor
    assert preprocessor.type == 'mmpretrain.ChannelClsDataPreprocessor'
    assert preprocessor.num_classes == 1000
    assert cfg.model.backbone.in_channels == 6
    kinds = [t['type'] for t in cfg.train_dataloader.dataset.pipeline]
    assert kinds == ['SeedDraws', 'LoadCanvas', 'RandomFlip', 'PackInputs']
    canvas = find(cfg, 'LoadCanvas')
    assert (canvas.size, canvas.crop_ratio_range, canvas.flip_prob) == (
        224, (0.08, 1.), 0.)
    assert (canvas.channels, canvas.dtype) == (6, 'float32')
    for split in ('val', 'test'):
        kinds = [t['type'] for t in
                 cfg[f'{split}_dataloader'].dataset.pipeline]
        assert kinds == ['LoadImage', 'ResizeImage', 'CenterCrop',
                         'PackInputs']
        assert find(cfg, 'LoadImage', split).channels == 6
        assert find(cfg, 'ResizeImage', split).scale == 256
    assert 'RandAugment, RandomErasing' in said[0]


CONFLICTS = {
    'another mean': (
        'cmae_vit-b_300e', ['data_preprocessor.mean=[1,2,3,4]'],
        r'data_preprocessor.mean=\[1, 2, 3, 4\] contradicts image_stats=.*'
        r'has \[100.*remove one'),
    'other channels': (
        'cmae_vit-b_300e', ['model.backbone.in_channels=6'],
        'model.backbone.in_channels=6 contradicts .*has 4'),
    'another type': (
        'cmae_vit-b_300e', ['data_preprocessor.dtype=uint8'],
        "data_preprocessor.dtype='uint8' contradicts .*'uint16'"),
    'other channels of the images': (
        'cmae_vit-b_300e', ['train_dataloader.dataset.pipeline.0.channels=3'],
        'LoadCanvas.channels=3 contradicts .*has 4'),
    "another config's own mean": (
        'cmae_vit-mini_20e', [], 'data_preprocessor.mean=.125.307.*contradi'),
    'workers that make views of colours': (
        'cmae_vit-mini_colour-both_tiles', [],
        '4 channels of uint16, but data_preprocessor.type=SelfSupDataPrepro'
        '.*use TwoViewDataPreprocessor'),
    'a pipeline that loads colours': (
        'cmae_vit-mini_tiles',
        ['train_dataloader.dataset.pipeline.0.type=LoadImageOrSkip'],
        'start it with LoadCanvas'),
    'an unknown transform of a classifier': (
        'vit-b_pt300e_100e_in1k',
        ['train_dataloader.dataset.pipeline.4.type=Posterize'],
        'Posterize of the pipeline may not support them'),
    'nothing of a file': (
        'cmae_vit-b_300e', ['image_stats=none.json'],
        "none.json cannot be read as image statistics .No such file"),
}


@pytest.mark.parametrize('case', CONFLICTS)
def test_contradicting_settings_raise(case, tmp_path):
    name, options, said = CONFLICTS[case]
    path, _ = stats_file(tmp_path)
    with pytest.raises((ImageStatsConflict, ImageStatsError), match=said):
        load_config(name, [f'image_stats={path}', *options])


def test_equal_settings_do_not_contradict(tmp_path):
    path, stats = stats_file(tmp_path)
    cfg = load_config('cmae_vit-b_300e', [
        f'image_stats={path}', 'model.backbone.in_channels=4',
        'data_preprocessor.value_range=(0,300)',
        f'data_preprocessor.mean={stats["mean"]}'.replace(' ', '')])
    # black and white may be chosen: nothing is cut off at them
    assert cfg.data_preprocessor.value_range == (0, 300)
    own = load_config('cmae_vit-mini_20e', [
        f'image_stats={path}', 'data_preprocessor.mean=None',
        'data_preprocessor.std=None'])
    assert own.data_preprocessor.std == stats['std']


def test_segmentation_needs_colour_images(tmp_path):
    cfg = Config(dict(
        model=dict(type='EncoderDecoder', backbone=dict()),
        data_preprocessor=dict(mean=[1.] * 3, std=[1.] * 3),
        image_stats=str(stats_file(tmp_path)[0])))
    from cmae_mm.image_config import apply_image_stats
    with pytest.raises(ImageStatsConflict,
                       match="type 'EncoderDecoder' supports 8-bit colours"):
        apply_image_stats(cfg)


def test_black_and_white_are_not_single_pixels():
    stats = dict(
        channels=2, min=[-9999., 0.], max=[1., 1e6], mean=[.5, 10.],
        std=[.1, 2.])
    low, high = value_range_of(stats)
    assert low == pytest.approx([.1, 2.])
    assert high == pytest.approx([.9, 18.])
    low, high = value_range_of(dict(stats, low=[.3, 5.], high=[.7, 5.]))
    assert (low, high) == ([.3, 0.], [.7, 1e6])
    # colours are cut off there
    colours = {k: v + [7.]
               for k, v in stats.items() if k != 'channels'}
    assert value_range_of(dict(colours, channels=3))[1] == [1., 1e6, 7.]


def test_pretrain_takes_it_as_an_argument(photos, tmp_path):
    path, stats = stats_file(tmp_path)
    for model, base in (('mini', 'quickstart/cmae_vit-mini_tiles'),
                        ('vit-s', 'cmae_vit-s_300e')):
        cfg, summary, facts = plan_pretraining(photos, model, stats=path)
        assert facts['base'] == base
        assert cfg.model.backbone.in_channels == 4
        assert f'4 channel(s) of uint16 from {path}' in summary
    path, stats = stats_file(tmp_path, 3, 'uint8')
    cfg, _, facts = plan_pretraining(photos, 'mini', stats=path)
    assert facts['base'] == 'quickstart/cmae_vit-mini_tiles'
    assert cfg.data_preprocessor.mean == stats['mean']
