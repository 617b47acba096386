"""Views of images of other channels and types than RGB in 8 bits."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.registry import MODELS
from scipy.ndimage import gaussian_filter

from cmae_mm.models import TwoViewDataPreprocessor

TYPES = dict(uint8=(0, 255), uint16=(0, 65535), float32=(-3., 9.))


def canvases(channels, dtype, count=3, side=20, seed=0):
    low, high = TYPES[dtype]
    values = np.random.default_rng(seed).uniform(
        low, high, (count, channels, side, side))
    return torch.from_numpy(values.astype(dtype))


def module_for(channels, dtype, **kwargs):
    mean = [float(c + 1) for c in range(channels)]
    std = [2. + c for c in range(channels)]
    if dtype == 'float32':
        kwargs = dict(value_range=(-3, 9), **kwargs)
    return TwoViewDataPreprocessor(
        16, max_shift=4, canvas_size=20, mean=mean, std=std, dtype=dtype,
        **kwargs)


def by_hand(canvas, n, params, module):
    """The target view of one image in float64, channel by channel."""
    y, x = params.shift[n].tolist()
    view = canvas[n, :, y:y + 16, x:x + 16].double().numpy()
    made = []
    for c, plane in enumerate(view):
        low = float(module.low[c if len(module.low) > 1 else 0])
        if params.jitter[n]:
            for step in params.order[n].tolist():
                if step > 1:  # saturation and hue
                    continue
                factor = float(params.factors[n, step, c])
                zero = low if step == 0 else plane.mean()
                plane = zero + (plane - zero) * factor
        if params.blur[n]:
            plane = gaussian_filter(
                plane, float(params.sigma[n]), mode='nearest',
                radius=module._kernel // 2)
        made.append((plane - float(module.mean[c])) / float(module.std[c]))
    return np.stack(made)


@given(channels=st.sampled_from([1, 2, 4, 6, 16, 64]),
       dtype=st.sampled_from(sorted(TYPES)), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_views_are_a_loop_over_the_channels(channels, dtype, seed):
    module = module_for(channels, dtype)
    canvas = canvases(channels, dtype, seed=seed)
    torch.manual_seed(seed)
    params = module.draw_params(3)
    torch.manual_seed(seed)
    online, target = module(dict(inputs=canvas), training=True)['inputs']
    assert target.dtype == online.dtype == torch.float32
    for n in range(3):
        expected = by_hand(canvas, n, params, module)
        error = np.abs(target[n].double().numpy() - expected).max()
        assert error < 1e-5 * np.abs(expected).max()
        plain = (canvas[n, :, :16, :16].double()
                 - module.mean.double()) / module.std.double()
        torch.testing.assert_close(
            online[n].double(), plain, rtol=1e-4, atol=1e-4)


def test_channels_are_changed_each_by_itself():
    module = module_for(4, 'uint8', jitter_prob=1., blur_prob=0.)
    params = module.draw_params(500)
    assert params.factors.shape == (500, 2, 4)
    flat = params.factors.flatten(1)
    correlation = np.corrcoef(flat.T.numpy()) - np.eye(8)
    assert np.abs(correlation).max() < 0.25
    assert 0.6 <= flat.min() < 0.62 and 1.38 < flat.max() <= 1.4


def test_values_above_the_range_are_not_clipped():
    """A range is what brightness is measured from, not what is allowed."""
    module = module_for(2, 'uint16', jitter_prob=1., blur_prob=0.,
                        value_range=(100, [1000, 2000]))
    canvas = canvases(2, 'uint16')
    target = module(dict(inputs=canvas), training=True)['inputs'][1]
    values = target * module.std + module.mean
    assert values.max() > 30000 and len(values.unique()) > 1000


def test_three_channels_are_colours_by_default():
    assert module_for(3, 'uint16').colour
    assert not module_for(3, 'uint8', colour=False).colour
    bright = module_for(3, 'uint16', jitter_prob=1., grey_prob=1.,
                        blur_prob=0.)
    target = bright(
        dict(inputs=canvases(3, 'uint16')), training=True)['inputs'][1]
    grey = target * bright.std + bright.mean
    # turned grey, at a relative precision of float32
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=0.1, rtol=0)


@pytest.mark.parametrize('kind', [
    'ChannelDataPreprocessor', 'TwoViewDataPreprocessor',
    'ChannelClsDataPreprocessor'])
def test_evaluation_normalises_and_checks_the_images(kind):
    size = dict(size=16) if kind.startswith('Two') else {}
    module = MODELS.build(dict(
        type=kind, mean=[5.] * 6, std=[2.] * 6, dtype='uint16', **size))
    canvas = canvases(6, 'uint16')
    data = dict(inputs=canvas, data_samples=None)
    torch.testing.assert_close(
        module(data)['inputs'], (canvas.float() - 5) / 2)
    for wrong, said in ((canvas[:, :1], '6 channel.*but got images of 1'),
                        (canvases(6, 'uint8'), "'uint16', but .* torch.uint8"),
                        ):
        with pytest.raises(ValueError, match=said):
            module(dict(data, inputs=wrong))
