import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from helpers import ROOT

from cmae_mm import dependencies
from cmae_mm.dependencies import (MissingLibrary, check_dependencies,
                                  check_transformers, cpu_count, require_dense)

GOOD = dict(torch='2.12.1+cu130', mmengine='0.10.12', mmcv='2.3.6',
            mmpretrain='1.3.6')


def check(**changes):
    versions = {**GOOD, **changes}

    def version_of(name):
        if versions[name] is None:
            raise ModuleNotFoundError(f'No module {name}', name=name)
        return versions[name]

    check_dependencies(version_of)


def test_both_distributions_are_supported():
    check()
    check(mmengine='0.10.7', mmcv='2.1.0', mmpretrain='1.2.0')


def test_cores_are_counted_on_every_system(monkeypatch):
    """macOS has no ``os.sched_getaffinity``."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 3, 5},
                        raising=False)
    assert cpu_count() == 3
    monkeypatch.delattr(os, 'sched_getaffinity')
    assert cpu_count() == os.cpu_count()
    for path in (ROOT / 'cmae_mm').rglob('*.py'):
        text = path.read_text('utf-8')
        assert path.name == 'dependencies.py' or 'sched_get' not in text


@pytest.mark.parametrize('name', GOOD)
def test_a_missing_one_is_named_with_its_command(name):
    with pytest.raises(ImportError) as error:
        check(**{name: None})
    text = str(error.value)
    assert f'cmae_mm needs {name}>=' in text
    assert f'{name} is not installed' in text and 'pip install' in text
    assert text.count('. ') == 0  # one sentence


@pytest.mark.parametrize('name, version', [
    ('torch', '2.0.1'),
    ('mmengine', '0.9.1'),
    ('mmcv', '2.4.0'),
    ('mmpretrain', '1.1.0rc1'),
])
def test_an_unsupported_one_is_named(name, version):
    with pytest.raises(ImportError, match=f'{name}>=.*but {version} is inst'):
        check(**{name: version})


def test_custom_imports_register_everything():
    """As another OpenMMLab project would add the plugin."""
    code = '''
from mmengine.utils import import_modules_from_strings
from mmpretrain import registry as r
import_modules_from_strings(["cmae_mm"])
assert r.MODELS.get("CMAE") and r.MODELS.get("CMAEViT")
assert r.MODELS.get("CMAENeck") and r.MODELS.get("CMAEHead")
assert r.TRANSFORMS.get("PixelShift") and r.HOOKS.get("TargetUpdateHook")
'''
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('versions,wrong', [
    (dict(), False),
    (dict(transformers='5.2.0'), False),
    (dict(pycocotools='2.0.11', transformers='4.57.6'), False),
    (dict(pycocotools='2.0.11', transformers='5.0.0'), True),
])
def test_incompatible_transformers_raise(versions, wrong):

    def version_of(name):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    if not wrong:
        check_transformers(version_of)
        return
    with pytest.raises(ImportError, match='5.0.0.*pip install'):
        check_transformers(version_of)


def test_import_does_not_need_the_dense_libraries():
    """Neither mmdet nor mmseg nor compiled operators.

    mmpretrain imports them where they are: so they are made to be missing.
    """
    code = ('import sys\n'
            "for name in ('mmdet', 'mmseg', 'mmcv.ops'):\n"
            '    sys.modules[name] = None\n'
            'import cmae_mm')
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('missing,said', [
    ('torch', 'cmae_mm needs torch>=2.1,<3, but torch is not installed: '
     'install it with `pip install torch torchvision`.'),
    ('safetensors', 'safetensors is not installed; install the requirements '
     f'of cmae_mm with `{dependencies.framework_command()}`'),
])
def test_missing_library_of_a_command_ends_in_one_sentence(missing, said):
    code = ('import sys\n'
            'class Missing:\n'
            '    def find_spec(self, name, path=None, target=None):\n'
            f'        if name.split(".")[0] == {missing!r}:\n'
            '            raise ModuleNotFoundError(\n'
            '                f"No module named {name!r}", name=name)\n'
            'sys.meta_path.insert(0, Missing())\n'
            'sys.argv = ["cmae"]\n'
            'from cmae_mm.cli.main import main\n'
            'main(["knn", "configs", "setup.cfg"])')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f'cmae knn: {said}'
    assert 'Traceback' not in done.stderr and not done.stdout


@pytest.mark.parametrize('config,missing,command', [
    ('detection/vitdet-mini_mask-rcnn_coco.py', 'mmdet',
     dependencies.dense_command('det')),
    ('segmentation/upernet-mini_coco.py', 'mmseg',
     dependencies.dense_command('seg')),
    ('detection/vitdet-mini_mask-rcnn_coco.py', 'mmcv.ops',
     'tools/install_ops.sh'),
])
def test_missing_dense_libraries_end_in_one_sentence(
        config, missing, command, tmp_path):
    """Of the command, where the library cannot be found."""
    # Found before the real ones; `mmcv.ops` is not to be had otherwise.
    code = ('import sys\n'
            f'sys.modules[{missing!r}] = None\n'
            "if 'mmcv.ops' not in sys.modules:\n"
            "    sys.modules['mmcv.ops'] = type(sys)('mmcv.ops')\n"
            "sys.path.insert(0, 'tools')\n"
            f"sys.argv = ['train.py', 'configs/{config}']\n"
            'import train')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('cmae train: ') and command in last, done.stderr
    assert 'Traceback' not in done.stderr


def test_operators_for_another_torch_are_named(monkeypatch):
    """Of an mmcv that stayed while torch was replaced."""
    class Unfit:
        def find_spec(self, name, path=None, target=None):
            if name == 'mmcv._ext':
                raise ImportError('_ext.so: undefined symbol: _ZN2at4_ops')

    for name in [n for n in sys.modules if n.startswith('mmcv.ops')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(sys, 'meta_path', [Unfit(), *sys.meta_path])
    with pytest.raises(MissingLibrary, match='compiled for another version '
                       'of torch; install them with `bash tools/install_ops'):
        require_dense('mmdet', 'det')


@pytest.mark.parametrize('installed,framework,dense', [
    ((), '[onedl]', '[det]'),
    (('onedl-mmengine', 'onedl-mmcv'), '[onedl]', '[det]'),
    (('mmengine', ), '[openmmlab,lite]', 'mmdet==3.3.0'),
    (('mmengine', 'mmcv'), '[openmmlab]', 'mmdet==3.3.0'),
])
def test_commands_fit_the_distribution_in_use(installed, framework, dense,
                                              monkeypatch):
    """Packages of the other distribution would be written over it."""
    monkeypatch.setattr(dependencies, 'is_installed', installed.__contains__)
    assert framework in dependencies.framework_command()
    assert dense in dependencies.dense_command('det')
