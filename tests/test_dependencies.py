import subprocess
import sys

import pytest

from cmae_mm.dependencies import check_dependencies

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
import sys
assert "mmdet" not in sys.modules and "mmseg" not in sys.modules
'''
    subprocess.run([sys.executable, '-c', code], check=True)
