"""Images are decoded as a viewer shows them; expected values by hand or by Pillow's own tools."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from experiments.data import decode
from experiments.data.decode import UnreadableError, plain, read_image, read_images

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def pixels(file, size=16):
    picture = read_image(file, size)
    assert picture.pixels is not None
    return picture.pixels


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_every_orientation_is_turned_as_viewers_turn_it(tmp_path, orientation, ending):
    quarters = np.zeros((16, 16, 3), np.uint8)
    quarters[:8, :8], quarters[:8, 8:], quarters[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    file = saved(tmp_path, Image.fromarray(quarters), f"x.{ending}", exif=exif, **options)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(file), expected)
    turned = {1: (0, 0), 2: (0, 15), 3: (15, 15), 4: (15, 0), 5: (0, 0), 6: (0, 15), 7: (15, 15), 8: (15, 0)}
    red = pixels(file)[turned[orientation]].astype(int)
    assert red[0] > 200
    assert red[1:].max() < 60
    assert plain(file.read_bytes()) == (orientation == 1 or ending == "tif")


def test_damaged_exif_data_leave_the_picture_as_it_is(tmp_path):
    image = Image.fromarray((RAMP * 255).astype(np.uint8))
    file = saved(tmp_path, image, "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert np.array_equal(pixels(file)[..., 0], np.asarray(image))


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ((RAMP * 65535).round().astype(np.uint16), "png"),
        ((RAMP * 65535).round().astype(np.uint16), "tif"),
        ((RAMP * 65535).round().astype(np.uint16), "pgm"),
        ((RAMP * 32767).round().astype(np.int16), "tif"),
        ((RAMP * 65535).round().astype(np.int32), "tif"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "tif"),
        (((RAMP - 0.5) * 2**20).astype(np.int32), "tif"),
        (RAMP.astype(np.float32), "tif"),
        ((RAMP * 255).astype(np.float32), "tif"),
        ((RAMP * 65535).astype(np.float32), "tif"),
        ((RAMP * 1e6).astype(np.float32), "tif"),
        ((RAMP * 5 - 3).astype(np.float32), "tif"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {value.flat[0]:g} {value.flat[-1]:g}",
)
def test_a_deep_ramp_from_black_to_white_becomes_one_of_8_bits(tmp_path, values, ending):
    if values.dtype == np.int16:
        skimage = pytest.importorskip("tifffile")
        skimage.imwrite(tmp_path / "x.tif", values)
        file = tmp_path / "x.tif"
    else:
        file = saved(tmp_path, Image.fromarray(values), f"x.{ending}")
    decoded = pixels(file).astype(float)
    assert np.abs(decoded - (RAMP * 255)[..., None]).max() <= 0.51
    assert not plain(file.read_bytes())


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    file = saved(tmp_path, Image.fromarray(np.full((4, 4), 200 * 257 // 8, np.uint16)), "x.png")
    assert np.unique(pixels(file, 4)).tolist() == [25]  # 200 / 8


def test_values_that_are_not_finite_are_black_and_white(tmp_path):
    values = np.full((4, 4), 0.5, np.float32)
    values[0] = np.nan, np.inf, -np.inf, 1
    file = saved(tmp_path, Image.fromarray(values), "x.tif")
    assert pixels(file, 4)[0, :, 0].tolist() == [0, 255, 0, 255]
    assert pixels(file, 4)[1:].min() == 128
    file = saved(tmp_path, Image.fromarray(np.full((4, 4), np.nan, np.float32)), "y.tif")
    with pytest.raises(UnreadableError, match="finite"):
        read_image(file, 4)


def _transparent(mode):
    """Blue of which nothing, half and all is seen."""
    rgba = np.zeros((3, 3, 4), np.uint8)
    rgba[..., 2] = 200
    rgba[..., 3] = np.array([0, 128, 255])[:, None]
    return Image.fromarray(rgba).convert(mode)


@pytest.mark.parametrize(("mode", "ending"), [("RGBA", "png"), ("RGBA", "webp"), ("LA", "png"), ("RGBA", "tif")])
def test_transparency_is_shown_on_white(tmp_path, mode, ending):
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    file = saved(tmp_path, _transparent(mode), f"x.{ending}", **options)
    colour = np.array([0, 0, 200]) if mode == "RGBA" else np.full(3, 23)  # 0.114 · 200
    alpha = np.array([0, 128, 255])[:, None] / 255
    expected = alpha * colour + (1 - alpha) * 255
    assert np.abs(pixels(file, 3)[:, 0] - expected).max() <= 1
    assert not plain(file.read_bytes())


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_transparent_colour_is_white(tmp_path, mode, ending):
    if mode == "RGB" and ending == "gif":
        pytest.skip("no such file")
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    transparent = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    file = saved(tmp_path, image, f"x.{ending}", transparency=transparent)
    assert pixels(file, 2).min() == 255
    assert not plain(file.read_bytes())


def test_a_palette_with_shares_of_transparency_is_shown_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]] * 3, np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    file = saved(tmp_path, image, "x.png", transparency=bytes([0, 51, 255]))
    assert pixels(file, 3)[0].tolist() == [[255, 255, 255], [204, 255, 204], [0, 0, 255]]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_plain_images_are_decoded_as_before(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).convert(mode)
    file = saved(tmp_path, image, "x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    with Image.open(file) as again:
        assert np.array_equal(pixels(file, 9), np.asarray(again.convert("RGB")))
    assert plain(file.read_bytes())


@pytest.mark.parametrize(
    "ending",
    ["jfif", "jpe", "JPG", "avif", "pgm", "ppm", "pnm", "pbm", "jp2", "tif", "TIFF", "tga", "bmp", "pcx"],
)
def test_what_pillow_writes_is_read(tmp_path, ending):
    from experiments.data.image_folders import is_image

    image = Image.fromarray(np.full((16, 16, 3), 255, np.uint8))
    image = {"pgm": image.convert("L"), "pbm": image.convert("1")}.get(ending, image)
    file = saved(tmp_path, image, f"x.{ending}")
    assert is_image(file.name)
    assert pixels(file).min() >= 250


def test_of_several_pictures_the_first_is_taken_and_said(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (40, 200)]
    for ending in ("gif", "tif", "png", "webp"):
        options = {"lossless": True} if ending == "webp" else {}
        file = saved(tmp_path, frames[0], f"x.{ending}", save_all=True, append_images=frames[1:], **options)
        assert read_image(file, 4).several
        assert np.unique(pixels(file, 4)).tolist() == [40]
        assert not read_image(saved(tmp_path, frames[0], f"y.{ending}", **options), 4).several


def test_a_huge_picture_is_read_or_said_to_be_too_large(tmp_path, monkeypatch, recwarn):
    file = saved(tmp_path, Image.new("1", (14000, 14000), 1), "x.png")
    assert pixels(file, 8).min() == 255
    assert not plain(file.read_bytes())
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    (picture,) = read_images([saved(tmp_path, Image.new("L", (50, 40)), "y.png")], 8, "")
    assert picture.problem == "too large, 50 × 40 pixels"
    assert not recwarn.list


def test_postscript_is_not_run(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableError, match="no image"):
        read_image(tmp_path / "x.png", 4)


@pytest.mark.parametrize(("content", "words"), [(b"", "an empty file"), (b"\x89PNG\r\n\x1a\n1234", "damaged")])
def test_what_cannot_be_read_says_why(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableError, match=words):
        read_image(tmp_path / "x.png", 4)
    with pytest.raises(UnreadableError, match="no such file"):
        read_image(tmp_path / "y.png", 4)
