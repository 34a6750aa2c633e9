"""Sizes as a user writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regscale.errors import RegscaleError
from regscale.sampling.sizes import size_of, size_of_aspect


def test_a_size_is_height_and_width_in_whole_patches() -> None:
    assert size_of("512x768", 16) == (512, 768)
    assert size_of(" 16X32 ", 16) == (16, 32)


@pytest.mark.parametrize(
    ("text", "nearest"), [("250x256", "256x256"), ("1x7", "16x16"), ("0x40", "16x32")]
)
def test_a_size_that_is_no_multiple_is_refused_and_the_nearest_named(
    text: str, nearest: str
) -> None:
    with pytest.raises(RegscaleError, match=rf"multiples of 16 pixels.*nearest size is {nearest}"):
        size_of(text, 16)


@pytest.mark.parametrize("text", ["512", "axb", "512x", "-16x16", "16x16x16"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RegscaleError, match="is HEIGHTxWIDTH in pixels; found"):
        size_of(text, 16)


@given(st.floats(0.25, 4), st.floats(0.25, 4))
def test_an_aspect_keeps_the_number_of_pixels_up_to_a_patch(wide: float, high: float) -> None:
    height, width = size_of_aspect(f"{wide:.3f}:{high:.3f}", (512, 512), 16)
    assert height % 16 == width % 16 == 0
    ratio = float(f"{wide:.3f}") / float(f"{high:.3f}")
    assert abs(height - 512 / ratio**0.5) <= 8
    assert abs(width - 512 * ratio**0.5) <= 8


@pytest.mark.parametrize("text", ["3", "0:1", "a:b", "3:0", "-1:2"])
def test_what_is_no_aspect_is_refused(text: str) -> None:
    with pytest.raises(RegscaleError, match="is WIDTH:HEIGHT; found"):
        size_of_aspect(text, (256, 256), 16)
