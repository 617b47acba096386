"""Colour changes of whole batches, beside kornia's of one image."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import preprocessor
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d

from cmae_mm.models.utils.colour import GREY

KORNIA = (adjust_brightness_accumulative,
          adjust_contrast_with_mean_subtraction,
          adjust_saturation_with_gray_subtraction,
          lambda image, turns: adjust_hue(image, turns * 2 * torch.pi))


def by_kornia(module, image, params, n):
    """Augment one image by its parameters, one operation at a time."""
    image = image[None].float() / 255
    for number in params.order[n] if params.jitter[n] else ():
        factor = params.factors[n:n + 1, number]
        image = KORNIA[number](image, factor).clamp(0, 1)
    if params.grey[n]:
        shares = torch.tensor(GREY).view(3, 1, 1)
        image = (image * shares).sum(1, keepdim=True).expand_as(image)
    if params.blur[n]:
        image = gaussian_blur2d(
            image, (module._kernel, ) * 2, params.sigma[n].expand(1, 2),
            border_type='replicate')
    return image[0].clamp(0, 1)


@given(seed=st.integers(0, 10**6), count=st.sampled_from([1, 3, 11, 16]))
@settings(max_examples=15, deadline=None)
def test_a_batch_is_changed_as_image_by_image(seed, count):
    module = preprocessor(max_shift=0)
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.randint(
        256, (count, 3, 24, 24), dtype=torch.uint8, generator=generator)
    canvas[0] //= 100  # nearly black, with pixels of no hue
    params = module.draw_params(count, [seed])
    target = module.make_views(canvas, params)[1]
    for n in range(count):
        expected = by_kornia(module, canvas[n], params, n)
        torch.testing.assert_close(target[n], expected, rtol=0, atol=1e-5)


def test_what_is_not_drawn_changes_nothing():
    module = preprocessor(max_shift=0)
    canvas = torch.arange(256).repeat(27)[:24 * 24 * 3 * 4].view(
        4, 3, 24, 24).to(torch.uint8)
    none = torch.zeros(4, dtype=torch.bool)
    params = module.draw_params(4, [1])._replace(
        jitter=none, grey=none, blur=none)
    online, target = module.make_views(canvas, params)
    assert torch.equal(target, online)
    assert torch.equal(target, canvas.float() / 255)
