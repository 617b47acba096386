"""No command runs code from a checkpoint or an output folder."""
import copy
import shutil
from pathlib import Path

import payloads
import pytest
import torch
from mmengine.logging import MMLogger
from payloads import body, write_zip

import cmae_mm
from cmae_mm.apis.pictures import report
from cmae_mm.checkpoints import CheckpointError, load_pretraining_model
from cmae_mm.cli.main import main
from cmae_mm.plain_config import parse_config


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Effects of payloads: files, and a module that writes one at import."""
    path = tmp_path / 'marker'
    touch = f'import pathlib\npathlib.Path({str(path)!r}).touch()\n'
    (tmp_path / 'evil').mkdir()
    for name in ('evil/__init__.py', 'evil/registry.py', 'evil_config.py'):
        (tmp_path / name).write_text(touch)
    write_zip(tmp_path / 'evil.pth', body(payloads.system(path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return path


def call_of(marker: Path) -> dict:
    return dict(type='os.system', command=f'touch {marker}')


# What is put into a config's values, by dotted key.
VALUES = {
    'data_preprocessor': call_of,
    'model.data_preprocessor': call_of,
    'model.type': lambda marker: 'evil.CMAE',
    'model.backbone': call_of,
    'model.backbone.type': lambda marker: 'evil',
    'model.backbone.norm_cfg': lambda marker: dict(type='evil.registry.LN'),
    'model.backbone.patch_cfg': lambda marker: dict(conv_type='evil'),
    'model.backbone._scope_': lambda marker: 'evil',
    'model.neck.projector': call_of,
    'model.neck.pixel_decoder.type': lambda marker: 'evil.Decoder',
    'model.head.reconstruction': lambda marker: dict(loss=call_of(marker)),
    'model.head.contrastive.predictor.type': lambda marker: 'mmengine.evil.x',
    'model._scope_': lambda marker: 'evil',
}
# These do not reach the model: they are of no effect.
HARMLESS = {
    'custom_imports': lambda marker: dict(
        imports=['evil'], allow_failed_imports=False),
    '_base_': lambda marker: [str(marker.with_name('evil_config.py'))],
    'default_scope': lambda marker: 'evil',
    'runner_type': lambda marker: 'evil.Runner',
    'custom_hooks': lambda marker: [call_of(marker)],
    'default_hooks.checkpoint': call_of,
    'visualizer': call_of,
    'optim_wrapper.optimizer': call_of,
    'train_dataloader.dataset': call_of,
    'train_dataloader.dataset.pipeline': lambda marker: [call_of(marker)],
    'image_stats': lambda marker: str(marker.with_name('evil.pth')),
    'load_from': lambda marker: str(marker.with_name('evil.pth')),
    'resume_from': lambda marker: str(marker.with_name('evil.pth')),
    'model.init_cfg': lambda marker: dict(
        type='Pretrained', checkpoint=str(marker.with_name('evil.pth'))),
    'model.backbone.init_cfg': lambda marker: call_of(marker),
    'work_dir': lambda marker: '{{fileDirname}}/{{$HOME:x}}/{{_base_.x}}',
}
# Python that is put behind a config.
CODE = {
    'statement': 'import os\nos.system("touch MARKER")',
    'call': 'x = __import__("os").system("touch MARKER")',
    'formatted': 'x = f"""{open("MARKER", "w")}"""',
    'import': 'from evil import *',
    'base': 'with read_base():\n    from evil_config import *',
}


def write_config(values: dict) -> str:
    return '\n'.join(f'{name} = {value!r}' for name, value in values.items())


def put(values: dict, key: str, value) -> dict:
    """Give a copy with one value replaced, by its dotted key."""
    values = copy.deepcopy(values)
    *path, last = key.split('.')
    node = values
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return values


@pytest.fixture(scope='module')
def values(pretrained):
    """The config of a pre-training."""
    content = torch.load(pretrained.checkpoint, weights_only=False)
    return parse_config(content['meta']['cfg'])


def with_config(checkpoint, text: str, folder: Path) -> Path:
    """Write a checkpoint with another config."""
    content = torch.load(checkpoint, weights_only=False)
    content['meta'].update(cfg=text, config=text)
    torch.save(content, folder / 'stranger.pth')
    return folder / 'stranger.pth'


def test_model_is_not_built_from_names_in_a_checkpoint(
        pretrained, values, marker, tmp_path):
    texts = {key: write_config(put(values, key, make(marker)))
             for key, make in VALUES.items()}
    texts.update({
        name: f'{write_config(values)}\n{code}'.replace('MARKER', str(marker))
        for name, code in CODE.items()})
    texts['class'] = f'{write_config(values)}\nmodel = dict(type=evil.CMAE)'
    for name, text in texts.items():
        file = with_config(pretrained.checkpoint, text, tmp_path)
        with pytest.raises(CheckpointError, match='its config'):
            load_pretraining_model(file)
            pytest.fail(name)
        assert not marker.exists(), name


def test_other_parts_of_a_checkpoint_are_ignored(
        pretrained, values, marker, tmp_path):
    expected = load_pretraining_model(pretrained.checkpoint)[0].state_dict()
    for name, make in HARMLESS.items():
        text = write_config(put(values, name, make(marker)))
        file = with_config(pretrained.checkpoint, text, tmp_path)
        state = load_pretraining_model(file)[0].state_dict()
        assert all(torch.equal(state[k], v) for k, v in expected.items())
        assert not marker.exists(), name


def all_at_once(values: dict, marker: Path) -> str:
    for key, make in {**VALUES, **HARMLESS}.items():
        if not key.startswith('model.backbone.'):
            values = put(values, key, make(marker))
    return write_config(values)


def run_here(words, capsys) -> tuple:
    """Run a command in this process; return its status and output."""
    MMLogger._instance_dict.clear()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out = capsys.readouterr()
    return stopped.value.code or 0, out.out + out.err


def test_no_command_runs_the_config_of_a_checkpoint(
        pretrained, photos, values, marker, tmp_path, safe_process, capsys,
        monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    file = with_config(pretrained.checkpoint, all_at_once(values, marker),
                       tmp_path)
    recipe = pretrained.config
    loader = ['--num-workers', '0']
    work = ['--work-dir', tmp_path / 'work']
    commands = [
        ['reconstruct', file, photos],
        ['attention', file, photos],
        ['features', file, photos],
        ['embed', photos, file, '--out', 'f.npz', *loader],
        ['map', photos, file, '--method', 'tsne', *loader],
        ['nearest', photos, file, photos / 'a/000.jpg', *loader],
        ['export', recipe, file, 'out.pth', '--to', 'timm'],
        ['export', recipe, file, 'all.pth', '--to', 'cmae'],
        ['train', recipe, '--resume', file, *work],
        ['train', recipe, '--work-dir', tmp_path / 'from', '--cfg-options',
         f'load_from={file}', 'resume=False', 'train_cfg.max_epochs=1'],
        ['pretrain', photos, '--model', 'mini', '--epochs', '1',
         '--batch-size', '4', '--init', file, '--out', tmp_path / 'init',
         *loader],
    ]
    done = {}
    for words in commands:
        code, said = run_here(words, capsys)
        assert not marker.exists(), words[0]
        assert 'Traceback' not in said, said
        done[words[0]] = code
    assert done['reconstruct'] == 1 and done['embed'] == 0
    assert done['train'] == 0


def stranger_folder(pretrained, text: str, folder: Path) -> Path:
    """Copy a training's folder, with another config in all places."""
    work = folder / 'work'
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pretrained.out, work)
    for path in [work / 'config.py', *work.glob('*/vis_data/config.py')]:
        path.write_text(text)
    return work


def test_no_command_runs_the_config_of_a_folder(
        pretrained, photos, values, smaller, marker, tmp_path, safe_process,
        capsys):
    touch = f'import pathlib\npathlib.Path({str(marker)!r}).touch()\n'
    texts = [touch, all_at_once(values, marker)]
    texts += [f'# CMAE, mini, after the config {name}\n{write_config(values)}'
              for name in (marker.with_name('evil_config.py'),
                           'evil_config.py', '../evil_config',
                           'work/quickstart.py', 'quickstart')]
    texts += [f'{write_config(values)}\n{c}'.replace('MARKER', str(marker))
              for c in CODE.values()]
    for text in texts:
        work = stranger_folder(pretrained, text, tmp_path)
        for name in ('cmae_vit-b_300e.py', 'quickstart.py'):
            (work / name).write_text(touch)
        # beside the place that the command runs in
        (tmp_path / 'cmae_vit-b_300e').write_text(touch)
        (tmp_path / 'quickstart').write_text(touch)
        made = report([work], tmp_path / 'report.html')
        assert made.out.is_file() and not marker.exists(), text[:200]
    for text in texts:
        work = stranger_folder(pretrained, text, tmp_path)
        words = ['pretrain', photos, '--model', 'mini', '--epochs', '2',
                 '--batch-size', '4', '--num-workers', '0', '--out', work]
        code, said = run_here(words, capsys)
        assert code == 1 and 'contains a training' in said or (
            'is not a config' in said), said
        assert 'Traceback' not in said and not marker.exists(), text[:200]
    code, said = run_here(['report', work], capsys)
    assert code == 0 and not marker.exists()


def test_same_folder_resumes_and_other_settings_raise(
        pretrained, photos, smaller, tmp_path):
    """Values parsed as plain data are enough."""
    shutil.copytree(pretrained.out, tmp_path / 'work')
    done = cmae_mm.pretrain(
        photos, 'mini', epochs=2, batch_size=4, num_workers=0,
        out=tmp_path / 'work', cfg_options=smaller)
    assert done.checkpoint.name == 'epoch_2.pth'
    other = shutil.copytree(tmp_path / 'work', tmp_path / 'other')
    dump = sorted(other.glob('*/vis_data/config.py'))[-1]
    dump.write_text(dump.read_text() + 'seed_of_nothing = 12\n')
    page = report([tmp_path / 'work', other], tmp_path / 'r.html')
    assert '+seed_of_nothing = 12' in page.out.read_text()
