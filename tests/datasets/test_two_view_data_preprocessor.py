"""Windows, colour and normalisation of whole batches."""
import colorsys

import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import photo, preprocessor
from PIL import Image, ImageFilter
from scipy import ndimage

from cmae_mm.datasets import PixelShift
from cmae_mm.models.augmentation import blur, plan_augmentation


def to_batch(*images):
    return torch.stack(
        [torch.from_numpy(i.copy()).permute(2, 0, 1) for i in images])


def still(module, count):
    """Parameters that change nothing."""
    params = module.draw_params(count)
    off = torch.zeros(count, dtype=torch.bool)
    return params._replace(jitter=off, grey=off, blur=off)


def as_image(view):
    return (view * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@given(seed=st.integers(0, 999), max_shift=st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_windows_are_pixel_shifts(seed, max_shift):
    """Identical windows for identical offsets, on both paths."""
    module = preprocessor(max_shift=max_shift)
    images = [photo(seed=s) for s in (1, 2, 3)]
    params = still(module, 3)._replace(
        shift=module.draw_params(3, [seed] * 3).shift)
    online, target = module.make_views(to_batch(*images), params)
    for n, image in enumerate(images):
        transform = PixelShift(size=24, max_shift=max_shift)
        transform.draw_shift = lambda n=n: tuple(params.shift[n].tolist())
        expected = transform(dict(img=image))['img']
        assert (as_image(online[n]) == expected[0]).all()
        assert (as_image(target[n]) == expected[1]).all()


def test_the_online_view_has_colours_of_its_own():
    """Those of its own draw, in its own window; the target's are the same."""
    images = to_batch(*(photo(seed=s) for s in range(16)))
    module = preprocessor(online_colour=True)
    plain = preprocessor()
    seeds = list(range(16))
    params = module.draw_params(16, seeds)
    before = plain.draw_params(16, seeds)
    assert before.online is None
    for name in ('shift', 'factors', 'order', 'sigma'):
        assert torch.equal(getattr(params, name), getattr(before, name))
    assert not torch.equal(params.factors, params.online.factors)
    online, target = module.make_views(images, params)
    assert torch.equal(target, plain.make_views(images, before)[1])
    expected = plain.make_views(images, params.online._replace(
        shift=torch.zeros_like(params.shift)))[1]
    assert torch.equal(online, expected)


MMCV = (mmcv.adjust_brightness, mmcv.adjust_contrast,
        lambda img, f, backend: mmcv.adjust_color(img, f, backend=backend),
        mmcv.adjust_hue)


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize('only', [0, 1, 2, 3, None])
def test_jitter_is_mmcvs_within_rounding(order, only):
    module = preprocessor(size=32, max_shift=0)
    factors = torch.tensor([[1.3, 0.7, 1.4, 0.07], [0.65, 1.35, 0.6, -0.1]])
    if only is not None:
        neutral = torch.tensor([1., 1., 1., 0.])
        neutral = neutral.expand(2, -1).clone()
        neutral[:, only] = factors[:, only]
        factors = neutral
    images = [photo(seed=4), photo(seed=5)]
    params = still(module, 2)._replace(
        jitter=torch.ones(2, dtype=torch.bool),
        order=torch.tensor([order, order]),
        factors=factors)
    _, target = module.make_views(to_batch(*images), params)
    for n, image in enumerate(images):
        image = image[..., ::-1]  # mmcv works on BGR
        for op in order:
            if only is None or op == only:
                image = MMCV[op](
                    image, float(factors[n, op]), backend='pillow')
        image = image[..., ::-1]
        difference = np.abs(
            as_image(target[n]).astype(int) - image.astype(int))
        # Pillow rounds to whole levels after each step, hue to 256 turns.
        assert difference.max() <= (1 if only in (0, 2) else 16)
        assert difference.mean() < (1 if only in (0, 1, 2) else 3)


GREY = np.array([0.299, 0.587, 0.114])


def rotate_hue(pixels, turns):
    """Turn the hue of (H, W, 3) with Python's own colour conversion."""
    turned = []
    for red, green, blue in pixels.reshape(-1, 3).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        turned.append(
            colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    return np.array(turned).reshape(pixels.shape)


def one_by_one(view, n, params, kernel):
    """Change one view, (3, S, S), one step after the other in float64."""
    pixels = view.permute(1, 2, 0).double().numpy()
    factors = params.factors[n].tolist()
    for step in params.order[n].tolist() if params.jitter[n] else ():
        if step == 3:
            pixels = rotate_hue(pixels, factors[3])
        else:
            grey = (pixels @ GREY)[..., None]
            reference = (0, grey.mean(), grey)[step]
            pixels = reference + factors[step] * (pixels - reference)
        pixels = pixels.clip(0, 1)
    if params.grey[n]:
        pixels = np.repeat((pixels @ GREY)[..., None], 3, axis=2)
    if params.blur[n]:
        pixels = blurred(pixels, params.sigma[n].item(), kernel)
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def blurred(pixels, sigma, kernel):
    for axis in (0, 1):
        pixels = ndimage.gaussian_filter1d(
            pixels, sigma, axis=axis, mode='nearest', radius=kernel // 2)
    return pixels


def test_views_are_changed_one_by_one_and_at_once():
    """One by one as on a CPU, and whole batches of one graph as on a GPU."""
    module = preprocessor(jitter=(0.4, 0.4, 0.4, 0.5))
    canvas = to_batch(*(photo(seed=s) for s in range(48)))
    params = module.draw_params(48)
    assert len({tuple(o) for o in params.order[params.jitter].tolist()}) > 15
    still_target = module.make_views(canvas, still(module, 48)._replace(
        shift=params.shift))[1]
    expected = torch.stack([
        one_by_one(still_target[n], n, params, module._kernel)
        for n in range(48)])
    target = module.make_views(canvas, params)[1]
    assert (target - expected).abs().max() < 1e-5
    window = module._cut(canvas, params.shift) / 255
    assert torch.equal(window, still_target)
    augment = torch.compile(module.augment, backend='aot_eager',
                            fullgraph=True, dynamic=False)
    plan = plan_augmentation(params, True)
    is_batched = augment(window, plan)
    assert (is_batched - expected).abs().max() < 1e-5
    # what is not chosen is not touched, in its last bit either
    alone = ~(params.jitter | params.grey | params.blur)
    assert alone.any() and torch.equal(is_batched[alone], window[alone])


def test_windows_of_a_rectangle():
    """The online one at the corner; the target's at the shift, both ways."""
    module = preprocessor(size=(16, 40), max_shift=6, jitter_prob=0,
                          grey_prob=0, blur_prob=0)
    canvas = torch.randint(256, (5, 3, 22, 46), dtype=torch.uint8)
    params = module.draw_params(5)
    online, target = module.make_views(canvas, params)
    assert torch.equal(online, canvas[:, :, :16, :40] / 255)
    for n, (y, x) in enumerate(params.shift.tolist()):
        assert torch.equal(
            target[n], canvas[n, :, y:y + 16, x:x + 40] / 255)
    assert torch.equal(module._cut(canvas, params.shift) / 255, target)
    with pytest.raises(ValueError, match='canvas of 46x22 .* be 22x46 or'):
        module.make_views(canvas.transpose(2, 3), params)


class OnDevice(torch.Tensor):
    """A tensor on a CPU whose device is a GPU."""

    device = torch.device('cuda')


@pytest.mark.parametrize('size', [1, 5, 17])
def test_blur_is_scipys_on_both_devices(size):
    """The convolutions of a GPU are the sums of a CPU."""
    images = torch.rand(3, 4, 9, 11)
    sigma = torch.tensor([[0.1], [0.9], [2.]])
    expected = torch.stack([
        torch.from_numpy(blurred(
            image.permute(1, 2, 0).double().numpy(), s.item(), size))
        for image, s in zip(images, sigma)]).permute(0, 3, 1, 2).float()
    for given_images in (images, images.as_subclass(OnDevice)):
        made = blur(given_images, sigma, size).as_subclass(torch.Tensor)
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-6)


def test_grey_and_blur_are_pillows_within_rounding():
    module = preprocessor(size=32, max_shift=0)
    images = [photo(seed=s) for s in range(4)]
    on, off = torch.tensor(True), torch.tensor(False)
    params = still(module, 4)._replace(
        grey=torch.stack([on, off, off, off]),
        blur=torch.stack([off, on, on, off]),
        sigma=torch.tensor([9., 0.5, 1.7, 9.]))
    _, target = module.make_views(to_batch(*images), params)
    views = [as_image(t).astype(int) for t in target]
    grey = np.asarray(Image.fromarray(images[0]).convert('L')).astype(int)
    assert np.abs(views[0] - grey[..., None]).max() <= 1
    for n, sigma in ((1, 0.5), (2, 1.7)):
        blurred = Image.fromarray(images[n]).filter(
            ImageFilter.GaussianBlur(sigma))
        difference = np.abs(views[n] - np.asarray(blurred).astype(int))
        # Pillow approximates the Gaussian by boxes.
        assert difference.max() <= 6 and difference.mean() < 1
        assert np.abs(views[n] - images[n].astype(int)).max() > 0
    assert (views[3] == images[3]).all()


def test_parameters_have_the_recipes_distributions():
    module = preprocessor()
    p = module.draw_params(20000)
    for share, expected in ((p.jitter, 0.8), (p.grey, 0.2), (p.blur, 0.5)):
        error = (expected * (1 - expected) / 20000)**.5
        assert abs(share.float().mean() - expected) < 5 * error
    ranges = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
    for column, (low, high) in zip(p.factors.t(), ranges):
        assert low <= column.min() and column.max() <= high
        assert column.mean() == pytest.approx((low + high) / 2, abs=0.01)
        assert column.std() == pytest.approx((high - low) / 12**.5, rel=0.03)
    assert p.sigma.min() >= 0.1 and p.sigma.max() <= 2.
    # all orders and all shifts are equally frequent
    for codes, number in ((p.order @ torch.tensor([64, 16, 4, 1]), 24),
                          (p.shift @ torch.tensor([8, 1]), 64)):
        counts = codes.unique(return_counts=True)[1].double()
        assert len(counts) == number
        expected = 20000 / number
        chi2 = ((counts - expected)**2 / expected).sum()
        assert chi2 < number + 5 * (2 * number)**.5


def test_views_are_normalised_and_in_rgb():
    module = preprocessor(jitter_prob=0, grey_prob=0, blur_prob=0)
    image = photo()
    data = dict(
        inputs=to_batch(image[..., ::-1], image[..., ::-1]), data_samples=None)
    views = module(data, training=True)['inputs']
    mean, std = (torch.tensor(v).view(3, 1, 1)
                 for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    expected = (to_batch(image)[0, :, :24, :24].float() - mean) / std
    torch.testing.assert_close(views[0][1], expected)
    # without training it only normalises
    plain = module(dict(data, inputs=data['inputs'].float()))['inputs']
    torch.testing.assert_close(plain[0, :, :24, :24], expected)


@pytest.mark.parametrize('kwargs, named', [
    (dict(canvas_size=31), 'canvas of 31 pixels .* must be 32'),
    (dict(size=0), 'size must be .* got 0'),
    (dict(grey_prob=1.5), 'grey_prob .* got 1.5'),
    (dict(blur_prob='often'), 'blur_prob must be .* got .often'),
    (dict(max_shift=1.5), 'max_shift must be a whole number'),
    (dict(jitter=(0.4, 0.4, 0.4)), 'jitter must be 4 numbers of 0 or more'),
    (dict(jitter=(0.4, 0.4, 0.4, 0.1, 0.1)), 'jitter must be 4 numbers'),
    (dict(jitter=(0.4, -0.4, 0.4, 0.1)), 'jitter must be 4 .* -0.4'),
    (dict(jitter=(0.4, 0.4, 0.4, 3)), 'hue, the last number .* at most 0.5'),
    (dict(jitter=(0.4, float('nan'), 0.4, 0.1)), 'jitter must be 4 numbers'),
    (dict(jitter=0.4), 'jitter must be 4 numbers .* got 0.4'),
    (dict(blur_sigma=(2.0, 0.1)), 'blur_sigma .* the lower one first'),
    (dict(blur_sigma=(0, 2.0)), 'blur_sigma must be two numbers above 0'),
    (dict(blur_sigma=1.0), 'blur_sigma must be 2 numbers'),
])
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        preprocessor(**kwargs)
    with pytest.raises(ValueError, match='canvas of 30x40 pixels'):
        preprocessor().make_views(
            torch.zeros(1, 3, 30, 40, dtype=torch.uint8), None)
