"""Pictures as training decodes them: every origin, every crop, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regscale.data import image_folder
from regscale.data._images import MAX_PIXELS, Misfit, Unusable, decode, is_picture, opened
from tests.data.packing import index, pack
from tests.data.test_shards import source
from tests.prepare.pictures import encoded
from tests.prepare.test_images import published_crop

SEEDS = st.integers(0, 99)
NONE = (0.0, 0.0, 0.0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def centre(payload: bytes, size: int) -> np.ndarray:
    made = decode(payload, size, crop="centre", chance=NONE)
    assert made.shape == (3, size, size)
    assert made.dtype == torch.uint8
    return made.permute(1, 2, 0).numpy()


def exact(payload: bytes) -> np.ndarray:
    return np.asarray(opened(payload)[0])


@settings(max_examples=40, deadline=None)
@given(height=st.integers(9, 300), width=st.integers(9, 300), size=st.integers(8, 40), seed=SEEDS)
def test_training_cuts_as_published(height: int, width: int, size: int, seed: int) -> None:
    """Against center_crop_arr of guided-diffusion."""
    pixels = noise(height, width, seed)
    expected = published_crop(Image.fromarray(pixels), size)
    assert np.array_equal(centre(encoded(pixels, "PNG"), size), expected)


def test_both_sources_of_pictures_cut_so(tmp_path: Path) -> None:
    payloads = [encoded(noise(30 + 17 * i, 90 - 11 * i, i)) for i in range(5)]
    expected = [published_crop(Image.open(io.BytesIO(p)).convert("RGB"), 24) for p in payloads]
    (tmp_path / "train/n1").mkdir(parents=True)
    for number, payload in enumerate(payloads):
        (tmp_path / f"train/n1/{number}.JPEG").write_bytes(payload)
    pack(tmp_path / "0.tar", [(f"k{i}", {"jpg": p}) for i, p in enumerate(payloads)])
    index(tmp_path)
    folder = image_folder.build(image_folder.Config(root=str(tmp_path / "train"), size=24))
    for data in (folder, source(tmp_path, "images", image_size=24)):
        images = data.read(range(5), range(5)).images
        assert images is not None
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 200), st.integers(0, 200), st.integers(4, 16), st.integers(0, 8), SEEDS)
def test_a_rectangle_is_the_middle_of_the_published_square(
    short: int, longer: int, half: int, less: int, seed: int
) -> None:
    """Of a picture whose short side is the rectangle's long one; so nothing is cut of it."""
    side, other = 2 * half, max(2, 2 * half - 2 * less)
    pixels = noise(short, short + longer, seed)
    square = published_crop(Image.fromarray(pixels), side)
    first = (side - other) // 2
    made = decode(encoded(pixels, "PNG"), (side, other), crop="centre", chance=NONE)
    assert np.array_equal(made.permute(1, 2, 0), square[:, first : first + other])


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (30, 7)])
@pytest.mark.parametrize("sides", [(40, 60), (33, 90), (200, 31), (5, 9), (16, 24)])
def test_a_rectangle_covers_as_much_of_a_picture_as_its_aspect_allows(
    size: tuple[int, int], sides: tuple[int, int]
) -> None:
    """Of a ramp from left to right, in the middle; up to a pixel of either picture."""
    ramp = np.linspace(0, 255, sides[1])[None, :, None].repeat(sides[0], 0).repeat(3, 2)
    made = decode(encoded(ramp.astype(np.uint8), "PNG"), size, crop="centre", chance=NONE).float()
    assert made.shape == (3, *size)
    kept = min(1.0, sides[0] / sides[1] * size[1] / size[0])  # of the width
    span = float(made[:, :, -1].mean() - made[:, :, 0].mean()) / 255
    assert abs(span - kept) < 2 * kept / size[1] + 1 / sides[1]
    assert abs(float(made.mean()) / 255 - 0.5) < kept / size[1] + 1 / sides[1]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 200), width=st.integers(9, 200), size=st.integers(8, 40), seed=SEEDS,
    numbers=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
)  # fmt: skip
def test_a_random_crop_is_a_square_of_the_resized_picture(
    height: int, width: int, size: int, seed: int, numbers: tuple[float, float, float]
) -> None:
    """random_crop_arr of guided-diffusion, with its three random numbers given."""
    pixels = noise(height, width, seed)
    made = decode(encoded(pixels, "PNG"), size, crop="random", chance=numbers)
    largest = int(np.ceil(size / 0.8))
    short = range(size, largest + 1)[int(numbers[0] * (largest + 1 - size))]
    picture = Image.fromarray(pixels)
    while min(*picture.size) >= 2 * short:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.BOX)
    scale = short / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.BICUBIC)
    whole = np.array(picture)
    top = range(whole.shape[0] - size + 1)[int(numbers[1] * (whole.shape[0] - size + 1))]
    left = range(whole.shape[1] - size + 1)[int(numbers[2] * (whole.shape[1] - size + 1))]
    expected = whole[top : top + size, left : left + size]
    assert np.array_equal(made.permute(1, 2, 0).numpy(), expected)


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_all_eight_orientations_come_out_upright(orientation: int, kind: str) -> None:
    about = Image.Exif()
    about[0x0112] = orientation
    pixels = np.kron(noise(3, 5), np.ones((8, 8, 1), dtype=np.uint8))  # blocks that JPEG keeps
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    made = exact(encoded(pixels, kind, exif=about, **options[kind]))
    difference = np.abs(made.astype(int) - TURNS[orientation](pixels))
    assert made.shape == TURNS[orientation](pixels).shape
    assert int(difference.max()) <= (3 if kind == "JPEG" else 0)  # JPEG rounds its colours


@pytest.mark.parametrize(("mode", "tolerance"), [("L", 2), ("CMYK", 2), ("RGB", 3)])
def test_jpegs_of_other_colours_become_rgb(mode: str, tolerance: int) -> None:
    """One colour in every block, so only the rounding of JPEG's colours is left."""
    pixels = np.kron(noise(3, 5), np.ones((8, 8, 1), dtype=np.uint8))
    payload = encoded(pixels, mode=mode, quality=100, subsampling=0)
    expected = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB")).astype(int)
    assert int(np.abs(exact(payload) - expected).max()) <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_pngs_of_other_modes_become_rgb(mode: str) -> None:
    pixels = noise(12, 10)
    expected = Image.fromarray(pixels).convert(mode).convert("RGB")
    assert np.array_equal(exact(encoded(pixels, "PNG", mode)), np.asarray(expected))


def test_16_bits_of_grey_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], dtype=np.uint16).repeat(7, 0)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert exact(file.getvalue())[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_a_png_that_is_named_jpeg_is_read_by_its_content(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1/a.JPEG").write_bytes(encoded(pixels, "PNG"))
    pack(tmp_path / "0.tar", [("key", {"jpg": encoded(pixels, "PNG")})])
    index(tmp_path)
    folder = image_folder.build(image_folder.Config(root=str(tmp_path), size=16))
    for data in (folder, source(tmp_path, "images", image_size=16)):
        images = data.read([0], [0]).images
        assert images is not None
        assert np.array_equal(images[0].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (3, 2), (1, 64), (64, 1)])
def test_tiny_pictures_grow(sides: tuple[int, int]) -> None:
    made = centre(encoded(noise(*sides), "PNG"), 16)
    assert np.array_equal(made, published_crop(Image.fromarray(noise(*sides)), 16))


def test_a_huge_picture_shrinks_to_its_colour() -> None:
    pixels = np.full((6000, 8000, 3), 77, dtype=np.uint8)
    assert np.unique(centre(encoded(pixels, "PNG"), 16)).tolist() == [77]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (encoded(noise(1, 65), "PNG"), "65 x 1 pixels: all but a line"),
        (encoded(noise(40, 40))[:300], "a damaged picture"),
        (b"", "no JPEG, PNG or WebP picture"),
        (encoded(noise(4, 4), "BMP"), "no JPEG, PNG or WebP picture"),
        (encoded(noise(4, 4), "GIF"), "no JPEG, PNG or WebP picture"),
        (b"GIF89a" + bytes(40), "no JPEG, PNG or WebP picture"),
    ],
)
@pytest.mark.parametrize("crop", ["centre", "random"])
def test_what_is_no_picture_is_told(payload: bytes, message: str, crop: str) -> None:
    with pytest.raises(Unusable, match=message):
        decode(payload, 16, crop=crop, chance=NONE)  # type: ignore[arg-type]


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_PIXELS > 10_000**2  # the largest of ImageNet has 100 million
    monkeypatch.setattr("regscale.data._images.MAX_PIXELS", 99)
    with pytest.raises(Unusable, match="a picture of 10 x 10 pixels"):
        opened(encoded(noise(10, 10), "PNG"))


def test_without_a_crop_another_size_is_a_misfit() -> None:
    payload = encoded(noise(12, 10), "PNG")
    with pytest.raises(Misfit, match="10 x 12 pixels, not 8 x 8, and nothing is to crop it"):
        decode(payload, 8, crop="none", chance=NONE)
    square = noise(8, 8)
    made = decode(encoded(square, "PNG"), 8, crop="none", chance=NONE)
    assert np.array_equal(made.permute(1, 2, 0).numpy(), square)


def test_files_that_are_listed() -> None:
    names = ["a/b.JPEG", "b.png", "c.webp", "d.jpg", "a/._b.jpg", "e.gif", "jpg", "f.npy"]
    assert [name for name in names if is_picture(name)] == names[:4]
