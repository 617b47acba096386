"""Imports of the code are in the lists of requirements."""
import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cmae_mm.dependencies import REQUIREMENTS

sys.path.insert(0, str(ROOT / 'tools'))
import missing_requirements  # noqa: E402

EXTRAS = ('onedl', 'openmmlab', 'lite', 'det', 'seg', 'embed', 'dicom',
          'geotiff', 'logging', 'report', 'map', 'completion', 'quickstart',
          'tests', 'dev', 'onnx', 'docs')
# Two distributions, or one under another name, own these modules.
OWNERS = {
    'mmengine': {'onedl-mmengine', 'mmengine'},
    'mmcv': {'onedl-mmcv', 'mmcv-lite'},
    'mmpretrain': {'onedl-mmpretrain', 'mmpretrain'},
    'mmdet': {'onedl-mmdetection'},
    'mmseg': {'onedl-mmsegmentation'},
    'cv2': {'opencv-python'},
    'PIL': {'pillow'},
    'yaml': {'pyyaml'},
    'sklearn': {'scikit-learn'},
    'skimage': {'scikit-image'},
    'umap': {'umap-learn'},
    'griffe': {'mkdocstrings-python'},  # which needs it
}
FRAMEWORK = ('mmengine', 'mmcv', 'mmpretrain')


def names_of(*extras):
    needs = missing_requirements.read_requirements(list(extras))
    return {canonicalize_name(n.name) for n in needs}


def third_party_imports(path):
    """Yield every imported module that is neither Python's nor ours."""
    scripts = list((ROOT / 'tools').rglob('*.py'))
    own = {'cmae_mm', *(p.stem for p in scripts),
           *(p.parent.name for p in scripts)}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            top = name.split('.')[0]
            if top not in sys.stdlib_module_names and top not in own:
                yield top


def announced_extras(path):
    """Return the extras named in a file or its package."""
    texts = [path.read_text()]
    for room in path.relative_to(ROOT).parents:
        init = ROOT / room / '__init__.py'
        if init.is_file() and room != Path('cmae_mm'):
            texts.append(init.read_text())
    if path.parent == ROOT / 'tools':  # the script that starts it
        shell = path.with_name(path.stem.split('_steps')[0] + '.sh')
        if shell.is_file():
            texts += re.findall(r'^ensure_environment (.*)$',
                                shell.read_text(), re.M)
            return set(' '.join(texts[1:]).split())
    found = re.findall(r'''extra='(\w+)|install_command\(["'](\w+)''',
                       ' '.join(texts))
    return {name for pair in found for name in pair} & set(EXTRAS)


def missing_from_the_lists(path):
    always = names_of()
    for module in sorted(set(third_party_imports(path))):
        owners = OWNERS.get(module, {canonicalize_name(module)})
        if module in FRAMEWORK:
            # whichever distribution is chosen
            if owners <= names_of('onedl') | names_of('openmmlab', 'lite'):
                continue
        elif owners & (always | names_of(*announced_extras(path))):
            continue
        yield f'{path.relative_to(ROOT)} imports {module}'


CODE = sorted((ROOT / 'cmae_mm').rglob('*.py')) + sorted(
    (ROOT / 'tools').rglob('*.py'))


def test_every_import_is_in_a_list():
    assert len(CODE) > 50
    found = [line for path in CODE for line in missing_from_the_lists(path)]
    assert not found


@pytest.mark.parametrize('text', [
    'import safetensors_of_nobody',
    'def f():\n    from nothing_listed import x',
    'import mmdet',  # in an extra that nobody announces
])
def test_an_import_without_a_list_is_found(text, monkeypatch):
    path = ROOT / 'cmae_mm/models/made_up.py'
    real = Path.read_text
    monkeypatch.setattr(
        Path, 'read_text',
        lambda self: text if self == path else real(self))
    assert list(missing_from_the_lists(path))


def pins_for(python):
    """Give the exact versions for a version of Python, by name."""
    lines = (ROOT / 'requirements/constraints.txt').read_text().splitlines()
    pins = {}
    for line in lines:
        if not line or line.startswith('#'):
            continue
        pin = Requirement(line)
        if pin.marker and not pin.marker.evaluate(
                dict(python_version=python)):
            continue
        name = canonicalize_name(pin.name)
        assert name not in pins, f'{name} is pinned twice'
        pins[name] = next(iter(pin.specifier)).version
    return pins


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_constraints_fit_the_ranges(python):
    """Each exact version is within the range of the list it is in."""
    pins = pins_for(python)
    assert set(pins) == set(pins_for('3.11'))
    others = [e for e in EXTRAS if e not in ('openmmlab', 'lite')]
    for need in missing_requirements.read_requirements(others):
        pin = pins.get(canonicalize_name(need.name))
        if pin is not None:
            assert need.specifier.contains(pin), need
    original = ['openmmlab', 'lite']
    for need in missing_requirements.read_requirements(original):
        if need.name.startswith('mm'):
            assert need.specifier.contains(pins[need.name]), need


def test_requirement_lists_match_the_import_checks():
    pins = (ROOT / 'requirements/constraints.txt').read_text()
    for module, supported in REQUIREMENTS.items():
        for name in OWNERS.get(module, {module}):
            version = re.search(rf'^{name}==(\S+)$', pins, re.M).group(1)
            assert (Version(supported.minimum) <= Version(version) <
                    Version(supported.below)), name


def test_missing_requirements_are_found(monkeypatch):
    assert not [
        line for line in missing_requirements.find_missing(['tests'])
        if 'cmae_mm' not in line
    ]
    real = metadata.version

    def version(name):
        if name == 'safetensors':
            raise metadata.PackageNotFoundError(name)
        return '0.0.1' if name == 'pytest' else real(name)

    monkeypatch.setattr(missing_requirements.metadata, 'version', version)
    found = '\n'.join(missing_requirements.find_missing(['tests']))
    assert re.search(r'pytest.*0\.0\.1 is installed', found)
    assert re.search(r'safetensors.* is not installed', found)


def test_installed_versions_that_fit_are_not_pinned(monkeypatch):
    """A person's own torch is left as it is."""
    real = metadata.version

    def version(name):
        if name in ('scikit-image', 'rich'):
            raise metadata.PackageNotFoundError(name)
        return '2.3.1' if name == 'torch' else real(name)

    monkeypatch.setattr(missing_requirements.metadata, 'version', version)
    lines = list(
        missing_requirements.remaining_constraints(['onedl', 'quickstart']))
    text = '\n'.join(lines)
    assert 'torch==' not in text and 'torchvision==' not in text
    assert 'rich==' in text and 'scikit-image==' in text
