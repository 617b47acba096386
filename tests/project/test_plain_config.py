"""Configs as plain data: no code in them is run."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmpretrain.registry import MODELS

from cmae_mm.config import load_config, parse_options
from cmae_mm.plain_config import (MAX_CHARACTERS, MODEL_TYPES,
                                  PlainConfigError, check_types, format_config,
                                  parse_config)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(), lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.text(), inner), max_leaves=10)


@settings(deadline=None, max_examples=50,
          suppress_health_check=[HealthCheck.too_slow])
@given(values=st.dictionaries(st.sampled_from('abcdef'), PLAIN))
def test_literals_are_read_as_python_reads_them(values):
    text = '\n'.join(f'{name} = {value!r}' for name, value in values.items())
    assert parse_config(text) == values


# What mmengine would replace, and what quotes and lines must not end.
ODD = ['{{fileDirname}}', '{{ fileBasename }}/x', '{{$HOME:y}}', '{{$NONE:}}',
       "{{'$A:b'}}", '{{_base_.model}}', '{{{', '\\{{', "'", '"', '\'"\\',
       'a\nb', '\r', '\udcff', '\u2028', 'ends in \\', '# x', 'inf', '\0']
TEXT = st.text() | st.sampled_from(ODD) | st.tuples(
    st.text(max_size=3), st.sampled_from(ODD)).map(''.join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(TEXT | st.integers() | st.sampled_from(
        ['lr', 'type', 'class', 'größe', 'ﬁ']), inner), max_leaves=12)


@settings(deadline=None, max_examples=150,
          suppress_health_check=[HealthCheck.too_slow])
@given(values=st.dictionaries(
    st.sampled_from(['a', 'b', 'größe', 'model']), VALUES))
def test_written_configs_read_back_the_same(values, tmp_path_factory):
    values = {key: values[key] for key in sorted(values)}
    text = format_config(values)
    assert_same(values, parse_config(text))
    path = tmp_path_factory.getbasetemp() / 'written.py'
    path.write_text(text, 'utf-8')
    assert_same(values, Config.fromfile(path).to_dict())


def assert_same(one, other) -> None:
    """Compare values with their types; nan is nan."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other or (one != one and other != other)


def test_classes_and_arrays_are_written_as_plain_values():
    text = format_config(dict(
        a=np.float32(0.5), b=np.arange(2), c=torch.nn.GELU, d=Path('x'),
        e={1, 2}, f=torch.tensor([1.]), **{'not a name': 1, 'class': 2}))
    assert parse_config(text) == dict(
        a=0.5, b=[0, 1], c='torch.nn.modules.activation.GELU', d='x',
        e={1, 2}, f=[1.])
    assert max(map(len, format_config(
        load_config('cmae_vit-b_300e').to_dict()).splitlines())) < 80


@pytest.mark.parametrize(('text', 'value'), [
    ('1', 1), ('1e-3', 1e-3), ('true', True), ('None', None), ('a b', 'a b'),
    ('1,2', [1, 2]), ('[1, 2]', [1, 2]), ('(1,2)', (1, 2)),
    ('a,b', ['a', 'b']),
    ('[(a,b),(c,d)]', [('a', 'b'), ('c', 'd')]), ('"1,2"', '1,2'), ('', ''),
    ("'None'", 'None'), ('photos (copy)', 'photos (copy)'), ('[]', []),
    ('{{fileDirname}}', '{{fileDirname}}'), ('a=b', 'a=b')])
def test_options_are_read_as_they_are_written(text, value):
    assert parse_options([f'a.b={text}']) == {'a.b': value}


@settings(deadline=None)
@given(text=TEXT)
def test_a_quoted_path_is_read_as_it_is(text):
    assert parse_options([f'a={text!r}']) == dict(a=text)


@pytest.mark.parametrize('text', [
    'import os', 'a = open("x")', 'a = dict(**b)', 'a = [x for x in y]',
    'a.b = 1', 'a = __import__("os").system("true")', 'a = (', 'a = b',
    'a = dict(1)', 'def f(): pass', 'a = f"{1}"', 'a: int = 1', 'a += 1',
    'with read_base():\n    from x import *', 'a = lambda: 1', 'a = 9**9**9',
    'a[0] = 1', 'a, b = 1, 2', 'if 1:\n    a = 1', 'a = x()', 'a = {**b}',
    'a = b.c()', 'a = {[]: 1}', 'a = "\0"', 'a = os.path["x"]',
    'a = ' + '[' * 1000 + ']' * 1000, 'a = ' + '-' * 100_000 + '1',
    'a = b' + '.c' * 100_000, 'a = ' + '1' * 10_000,
    'a = 1' + ' ' * MAX_CHARACTERS])
def test_config_with_code_raises(text):
    with pytest.raises(PlainConfigError, match='its config'):
        parse_config(text)


def test_a_class_is_read_by_its_name_and_numbers_that_are_not_finite():
    found = parse_config('a = dict(type=os.system)\nb = [-inf, nan]')
    assert found['a'] == dict(type='os.system')
    assert found['b'][0] == -math.inf and math.isnan(found['b'][1])


@pytest.mark.parametrize('name', [
    'cmae_vit-b_300e', 'finetune/vit-b_pt300e_100e_in1k'])
def test_every_config_reads_as_mmengine_wrote_it(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    assert parse_config(cfg.pretty_text) == cfg.to_dict()


def test_all_models_of_the_recipes_are_on_the_list():
    found = 0
    for path in ROOT.glob('configs/*.py'):
        cfg = Config.fromfile(path).to_dict()
        if cfg.get('model', {}).get('type') == 'CMAE':
            model = dict(cfg['model'],
                         data_preprocessor=cfg['data_preprocessor'])
            kept = dict(model, backbone={
                k: v for k, v in model['backbone'].items() if k != 'init_cfg'})
            assert check_types(model) == kept
            found += 1
    assert found > 5


def test_every_type_of_the_list_is_registered():
    """One that is not would be imported by its name."""
    registries = [MODELS]
    while registries[-1].parent is not None:
        registries.append(registries[-1].parent)
    for name in MODEL_TYPES:
        assert any(name in r.module_dict for r in registries), name


@pytest.mark.parametrize('node', [
    dict(type='os.system'), dict(type='mmpretrain.os.system'),
    dict(type='builtins.eval'), dict(type='mmengine.Config.fromfile'),
    dict(type='evil.CMAE'), dict(type='evil'), dict(type=''), dict(type=1),
    dict(type=None), dict(type=['CMAE']), dict(type={'type': 'CMAE'}),
    dict(type='CMAE', a=dict(b=[(dict(type='os.system'), )])),
    dict(type='CMAE', _scope_='evil'), dict(type='CMAE', _delete_=True),
    dict(a='os.system'), dict(a='/etc/passwd'), dict(a='https://x'),
    dict(patch_cfg=dict(conv_type='evil')), {'a b': 1}, {1: 2}, {'a.b': 1},
    dict(a={1}), dict(a=b'x'), dict(a='{{fileDirname}}'), dict(a=1j),
])
def test_a_model_of_anything_else_is_refused(node):
    with pytest.raises(PlainConfigError, match='in its config'):
        check_types(dict(model=node))


def test_types_become_bare_and_other_weights_are_left_out():
    node = dict(
        type='cmae_mm.models.cmae.CMAE',
        backbone=dict(type='mmpretrain.CMAEViT', init_cfg=dict(
            type='Pretrained', checkpoint='http://x/y.pth')),
        init_cfg=[dict(type='os.system')], sizes=(1, [2., None, True]))
    assert check_types(node) == dict(
        type='CMAE', backbone=dict(type='CMAEViT'),
        sizes=(1, [2., None, True]))
