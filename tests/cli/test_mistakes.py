"""Errors of users end in one sentence."""
import os
import re
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_commands, write_images
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope

from cmae_mm.apis.arguments import ArgumentError
from cmae_mm.cli.errors import explain
from cmae_mm.config import (_VARIABLES, ConfigError, check_keys, known_keys,
                            load_config, parse_options)
from cmae_mm.datasets.decode import UnfitImage
from cmae_mm.datasets.transforms import BrokenImagesError
from cmae_mm.dependencies import MissingLibrary, find_config

QUICK = 'configs/quickstart/cmae_vit-mini_tiles.py'
LOADER = ['train_dataloader.num_workers=0', 'train_dataloader.batch_size=4',
          'train_dataloader.persistent_workers=False',
          'train_cfg.max_iters=1']


def options(*pairs):
    return ['train', QUICK, '--cfg-options', *LOADER, *pairs]


SETTINGS = sorted(set(known_keys()) - _VARIABLES)
# A command and its message.
MISTAKES = {
    'no such config': (
        ['train', 'cmae_vit-b_400e'],
        'no packaged config .cmae_vit-b_400e.*did you mean .*cmae_vit-b_300e'),
    'a misspelt key of a file': (
        ['train', '{tmp}/misspelt.py'],
        'there is no setting .trian_cfg.; did you mean .train_cfg.'),
    'a config that inherits from itself': (
        ['train', '{tmp}/itself.py'], r'itself\.py .* inherits from itself'),
    'a config that raises': (
        ['train', '{tmp}/raises.py'],
        r'raises\.py cannot be read: RuntimeError: no data today'),
    'a module of an override that is not there': (
        options('custom_imports.imports=nope_mod'),
        "custom_imports of .* No module named 'nope_mod'; PYTHONPATH"),
    'to resume in words': (
        options('resume=no'), 'resume must be True or False, but got .no.'),
    'to compile in words': (
        options('compile=yes'), 'compile must be True or False, but got .yes'),
    'an empty path': (['pretrain', '.', '--out', ''], 'out is an empty path'),
    'a switch in words': (
        options('train_dataloader.drop_last=no'),
        'train_dataloader.drop_last must be True or False, but got .no.'),
    'a launcher as an override': (
        options('launcher=pytorch'), 'launcher cannot .* use --launcher'),
    'a misspelt seed': (
        options('randomness.sed=1'), 'no setting .randomness.sed.*mean .seed'),
    'a misspelt setting of the environment': (
        options('env_cfg.cudnn_benchmarks=True'), 'mean .cudnn_benchmark.'),
    'an unknown level of the log': (
        options('log_level=debugg'), 'log_level must be DEBUG, .* .debugg.'),
    'a word as the encoder': (
        options('model.backbone=vit'), 'model.backbone must be a dict, but'),
    'an argument of a class without any': (
        options('custom_hooks.0.interval=3'),
        r'Hook\(\) takes no arguments, but the config has some'),
    'no batch to scale the rate to': (
        ['train', QUICK, '--auto-scale-lr', '--cfg-options',
         'auto_scale_lr=None'], 'needs auto_scale_lr = dict.base_batch_size'),
    'to resume from an empty folder': (
        ['train', QUICK, '--resume', '{tmp}/empty', '--cfg-options', *LOADER],
        'the folder .*empty contains no checkpoint; name a file'),
    'no model': (options('model=None'), 'it must define model, '),
    'epochs without end': (
        ['train', '{tmp}/endless.py', '--cfg-options', *LOADER[:3]],
        'an epoch of InfiniteSampler never ends; set .*SeededSampler'),
    'a config with an error in it': (
        ['train', '{tmp}/broken.py'], r'broken\.py cannot be read.*nope'),
    'a misspelt key on the command line': (
        options('trian_cfg.max_iters=2'),
        'no setting .trian_cfg.; did you mean .train_cfg.'),
    'a misspelt argument of a class': (
        options('model.backbone.mask_rato=0.5'),
        'CMAEViT has no argument .mask_rato.; did you mean .mask_ratio.'),
    'a misspelt argument that two classes have': (
        options('model.bakbone.depth=3'),
        'CMAE has no argument .bakbone.; did you mean .backbone.[?]'),
    'a misspelt argument in a file': (
        ['train', '{tmp}/argument.py'],
        'MomentumTarget has no argument .momentun.; did you mean .momentum.'),
    'a misspelt type': (
        options('model.backbone.type=CMAEVit'),
        'type=.CMAEVit. is not registered; did you mean .CMAEViT.'),
    'a misspelt hook': (
        options('custom_hooks.1.type=TargetUpdatHook'),
        'type=.TargetUpdatHook. is not .*did you mean .TargetUpdateHook.'),
    'an unknown optimizer': (
        options('optim_wrapper.optimizer.type=AdamWW'),
        'type=.AdamWW. is not .*did you mean .AdamW.'),
    'a learning rate in words': (
        options('optim_wrapper.optimizer.lr=fast'),
        'optimizer.lr must be a number above 0, but got .fast.'),
    'epochs in words': (
        ['train', 'cmae_vit-s_300e', '--cfg-options',
         'train_cfg.max_epochs=ten'],
        'max_epochs must be a whole number of 1 or more, but got .ten.'),
    'no epochs': (
        ['train', 'cmae_vit-s_300e', '--cfg-options',
         'train_cfg.max_epochs=0'], 'max_epochs must be .* 1 or more'),
    'an override without =': (
        options('train_cfg'), 'takes KEY=VALUE, .* but got .train_cfg.'),
    'an override with an empty key': (
        options('model..backbone=1'), 'dots between nested keys, but got'),
    'a number of checkpoints in words': (
        options('default_hooks.checkpoint.max_keep_ckpts=few'),
        'max_keep_ckpts must be a whole number of -1 or more, but got .few.'),
    'mixed precision in float32': (
        ['train', QUICK, '--amp', '--cfg-options', *LOADER,
         'optim_wrapper.dtype=float32'],
        "--amp needs an optim_wrapper .* and dtype='float32'; set"),
    'a setting of the optimizer of another type': (
        options('optim_wrapper.optimizer.betas=0.9'),
        'AdamW cannot be built .*not subscriptable.* betas=0.9, '),
    'an override with a dict': (
        options('model=dict(type=CMAE)'),
        r'cannot take a dict.*with dots: model\.KEY=VALUE'),
    'brackets that do not match': (
        options('model.backbone.arch=(1'), 'brackets of .* do not match'),
    'an override through a number': (
        options('train_cfg.max_iters.x=1'), 'max_iters.x does not fit into'),
    'an index beyond the list': (
        options('custom_hooks.9.type=X'),
        'custom_hooks.9.type does not fit into .*: Index 9 exceeds'),
    'a number in place of settings': (
        options('custom_hooks=5'), 'custom_hooks=5 would replace a list; '),
    'no head': (
        options('model.head=None'), 'model.head=None would replace a dict; '),
    'a launcher that has not started the process': (
        ['train', QUICK, '--launcher', 'slurm'],
        'SLURM_NTASKS is not; start the processes with tools/dist_train.sh'),
    'too many epochs': (
        ['pretrain', '.', '--epochs', '9' * 15], 'at most 1e.06'),
    'a data folder that is not there': (
        options('train_dataloader.dataset.data_root={tmp}/none'),
        'none. does not exist; use a folder .*DATA_ROOT'),
    'a data folder that is a file': (
        options('train_dataloader.dataset.data_root={tmp}/broken.py'),
        r'broken\.py, line 1: _base_ .*does not exist.*each line has a path'),
    'a data folder that is a link to itself': (
        options('train_dataloader.dataset.data_root={tmp}/loop'),
        'loop. is a dangling link'),
    'a data folder without images': (
        options('train_dataloader.dataset.data_root={tmp}/empty'),
        'no images below .*empty'),
    'a checkpoint that is not there': (
        options('load_from={tmp}/none.pth'), 'there is no .*none.pth'),
    'a folder as a checkpoint': (
        options('load_from={tmp}/empty'), 'empty contains no checkpoint'),
    'more memory than there is': (
        options('model.backbone.img_size=819200'),
        'ran out of memory; use a smaller batch.* halve train_dataloader'),
    'too large a batch for the data': (
        ['train', 'cmae_vit-s_300e', '--cfg-options',
         'train_dataloader.num_workers=0',
         'train_dataloader.persistent_workers=False'],
        '6 images.*512.*batch_size'),
    'heads that do not divide the width': (
        options('model.neck.pixel_decoder.decoder_num_heads=3'),
        'num_heads.*64'),
    'another image size than the views have': (
        options('model.backbone.img_size=128'), '64.*128|128.*64'),
    'a misspelt checkpoint setting': (
        options('default_hooks.checkpoint.max_keep_ckpt=3'),
        'AtomicCheckpointHook has no argument .max_keep_ckpt.; did you mean '
        '.max_keep_ckpts.'),
    'a misspelt default hook': (
        ['train', '{tmp}/hook.py'],
        'no setting .default_hooks.chekpoint.; did you mean .checkpoint.'),
    'a misspelt multiplier': (
        options('optim_wrapper.paramwise_cfg.nrom_decay_mult=0.1'),
        'no setting .*nrom_decay_mult.; did you mean .norm_decay_mult.'),
    'a misspelt bound of gradients': (
        options('optim_wrapper.clip_grad.max_nrm=3'), 'mean .max_norm.'),
    'a negative bound of gradients': (
        options('optim_wrapper.clip_grad.max_norm=-1'),
        'clip_grad.max_norm must be a number above 0, but got -1'),
    'no bound of gradients': (
        options('optim_wrapper.clip_grad.norm_type=2'),
        'has no max_norm; set optim_wrapper.clip_grad.max_norm to a number'),
    'an infinite learning rate': (
        options('optim_wrapper.optimizer.lr=inf'), 'must be a number above 0'),
    'to resume and not': (
        ['train', QUICK, '--resume', '--no-resume'], 'not allowed with'),
    'a checkpoint over itself': (
        ['export', QUICK, '{tmp}/a.pth', '{tmp}/photos/../a.pth', '--to',
         'timm'], 'would be overwritten'),
    'no neighbours': (
        ['knn', '.', 'random', '--ks', '0'],
        '--ks: must be a whole number of 1 or more, but got .0.'),
    'images that are none': (
        options('train_dataloader.dataset.data_root={tmp}/none_is_one',
                'train_dataloader.dataset.pipeline.0.max_failures=3'),
        '3 images in a row could not be decoded'),
    'nothing to test': (
        ['test', QUICK, '{tmp}/a.pth'], 'has no test_dataloader'),
    'nothing to evaluate on': (
        ['knn', '{tmp}/photos', 'random', '--config', QUICK],
        'no labelled images'),
    'a classifier as the config of an evaluation': (
        ['knn', '{tmp}/labelled', 'random', '--val', '{tmp}/labelled/train',
         '--ks', '1', '--config', 'configs/cifar10/finetune_vit-mini_10e.py'],
        'must be a pre-training config.* is a ImageClassifier'),
    'an evaluation of one class': (
        ['knn', '{tmp}/one', 'random', '--val', '{tmp}/one/train',
         '--config', QUICK],
        'training images of .*one.train have a single class'),
    'an export of no folder': (
        ['export', '{tmp}/nothere', '{tmp}/x.onnx'],
        'nothere does not exist; use `cmae export FOLDER OUT`'),
    'an export of an empty folder': (
        ['export', '{tmp}/empty', '{tmp}/x.onnx'], 'empty has no best.pth'),
    'float16 for timm': (
        ['export', QUICK, '{tmp}/broken.py', '{tmp}/out.pth', '--to', 'timm',
         '--dtype', 'float16'], '--dtype float16 needs --to onnx'),
    'no such folder for shares': (
        ['splits', '{tmp}/empty'], 'no labelled images below .*empty; there '
        'is no part train; class folders'),
    'a text as a checkpoint': (
        ['export', QUICK, '{tmp}/broken.py', '{tmp}/out.pth', '--to',
         'timm'], r'broken\.py'),
    'an import of what is ours already': (
        ['import', QUICK, '{tmp}/encoder.pth', '{tmp}/out.pth'],
        r'encoder\.pth: it is a bare encoder with the parameter names of this '
        'project and needs no conversion'),
    'an import into a classifier': (
        ['import', 'configs/cifar10/finetune_vit-mini_10e.py',
         '{tmp}/encoder.pth', '{tmp}/out.pth'],
        'must be a pre-training config.* is a ImageClassifier'),
    'a share of more than everything': (
        ['splits', '{tmp}/labelled', '--percent', '101'],
        '--percent: must be a number above 0 and at most 100, but got .101.'),
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Run all commands in one process."""
    tmp = tmp_path_factory.mktemp('mistakes')
    base = f"_base_ = '{ROOT / QUICK}'\n"
    (tmp / 'misspelt.py').write_text(f'{base}trian_cfg = dict(max_iters=3)\n')
    (tmp / 'broken.py').write_text(f'{base}model = nope\n')
    (tmp / 'endless.py').write_text(
        f"{base}train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', "
        'max_epochs=1)\n')
    (tmp / 'itself.py').write_text("_base_ = './itself.py'\n")
    (tmp / 'raises.py').write_text("raise RuntimeError('no data today')\n")
    (tmp / 'argument.py').write_text(
        f'{base}model = dict(target=dict(momentun=0.9))\n')
    (tmp / 'empty').mkdir()
    (tmp / 'hook.py').write_text(
        f"{base}default_hooks = dict(chekpoint=dict(interval=3))\n")
    (tmp / 'none_is_one').mkdir()
    for i in range(4):
        (tmp / f'none_is_one/{i}.jpg').touch()
    os.symlink(tmp / 'loop', tmp / 'loop')
    write_images(tmp / 'photos', 6)
    for name in ('labelled/train/a', 'labelled/train/b', 'one/train/a'):
        write_images(tmp / name, 1)
    torch.save(dict(a=torch.ones(1)), tmp / 'a.pth')
    torch.save({'pos_embed': torch.ones(1), 'layers.0.a': torch.ones(1)},
               tmp / 'encoder.pth')
    commands = [[str(a).format(tmp=tmp) for a in command]
                for command, _ in MISTAKES.values()]
    debug = ['train', QUICK, '--debug', '--cfg-options',
             'optim_wrapper.optimizer.lr=fast']
    return dict(zip([*MISTAKES, 'debug'], run_commands(
        *commands, debug, DATA_ROOT=str(tmp / 'photos'))))


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_end_in_one_sentence(name, results):
    command, said = MISTAKES[name]
    code, output = results[name]
    told = output.strip().splitlines()[-1]
    assert code in (1, 2)
    assert re.search(said, told), (code, output[-2000:])
    assert told.startswith(f'cmae {command[0]}: ')
    assert 'Traceback' not in output


class _Faulty(torch.utils.data.Dataset):
    """Raises in the worker, where another error is being handled."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            {}['KeyError: of no interest']
        except KeyError as error:
            raise self.kind('a.dcm is one:\ninstall it') from error


@pytest.mark.parametrize('kind', [
    MissingLibrary, UnfitImage, BrokenImagesError, ArgumentError])
def test_errors_of_data_workers_give_the_same_sentence(kind):
    loader = torch.utils.data.DataLoader(_Faulty(kind), num_workers=1)
    with pytest.raises(kind, match='in DataLoader worker') as raised:
        next(iter(loader))
    assert explain(raised.value) == 'a.dcm is one:\ninstall it'


def test_debug_shows_the_traceback_and_the_status_is_1(results):
    code, output = results['debug']
    assert code == 1 and 'Traceback' in output
    assert output.strip().splitlines()[-1].startswith('cmae train: ')


def test_unknown_config_keys_are_kept(tmp_path, capsys):
    """Keys of user hooks or other code raise nothing."""
    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = '{ROOT / QUICK}'\nmy_hook_setting = 3\n"
                      'train_cfg_short = dict(max_iters=1)\n'
                      'models = custom_hook = train_pipeline1 = 1\n')
    cfg = load_config(str(config))
    assert cfg.my_hook_setting == 3
    assert not capsys.readouterr().err
    load_config(str(config), ['my_own_key=3'])
    assert 'warning: --cfg-options my_own_key' in capsys.readouterr().err


def test_all_shipped_configs_pass_the_checks():
    names = [p for p in (ROOT / 'configs').rglob('*.py')
             if '_base_' not in p.parts]
    assert len(names) > 25
    for path in names:
        if path.parent.name not in ('detection', 'segmentation') or (
                'cmae_vit' in path.name):
            load_config(str(path))


@given(st.sampled_from(SETTINGS), st.data())
def test_swapped_letters_of_a_key_raise(key, data):
    place = data.draw(st.integers(0, len(key) - 2))
    letters = list(key)
    letters[place:place + 2] = reversed(letters[place:place + 2])
    slip = ''.join(letters)
    cfg = Config({slip: 1})
    if slip in known_keys():
        check_keys(cfg, {})
        return
    with pytest.raises(ConfigError, match=f'no setting {slip!r}'):
        check_keys(cfg, {})


@given(st.lists(st.text(min_size=1, max_size=20), max_size=3))
def test_any_override_is_parsed_or_raises_one_sentence(pairs):
    try:
        options = parse_options(pairs)
    except ConfigError as error:
        assert str(error)
    else:
        assert len(options) <= len(pairs)


def test_configs_are_found_by_name():
    assert find_config(QUICK) == QUICK
    for name in ('cmae_vit-b_300e', 'cmae_vit-b_300e.py',
                 'configs/cmae_vit-b_300e.py'):
        assert find_config(name).endswith('configs/cmae_vit-b_300e.py')
    assert find_config('cmae_vit-mini_tiles').endswith('mini_tiles.py')
    # one name in two folders
    with pytest.raises(FileNotFoundError, match='pt300e'):
        find_config('vit-b_pt300e')


def test_keys_of_mmpretrains_configs_pass_the_checks():
    """Names in mmpretrain's own configs are not taken for misspelt keys."""
    import mmpretrain
    folder = Path(mmpretrain.__file__).parent / '.mim/configs'
    names = {
        name
        for path in folder.rglob('*.py')
        for name in re.findall(r'^([a-z]\w*) = ', path.read_text(), re.M)
    }
    assert len(names) > 30
    check_keys(Config(dict.fromkeys(names, 1)), {})


def test_a_type_of_mmpretrain_is_suggested_in_another_scope():
    with DefaultScope.overwrite_default_scope('mmengine'), (
            pytest.raises(KeyError)) as error:
        VISUALIZERS.build(dict(type='UniversalVisualizer'))
    assert "did you mean 'mmpretrain.UniversalVisualizer'?" in explain(
        error.value)
