"""Pictures of a record and of a page: as small as they can be without looking different."""

import base64
import io

import numpy as np
from PIL import Image

from experiments.report.pictures import embedded, figure_name, small_png


def _saved(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def _chart():
    grey = np.linspace(0, 240, 120).astype(np.uint8)
    chart = np.full((200, 300, 3), 255, np.uint8)
    chart[20:180, 30:150] = grey[None, :, None]
    chart[40:60, 200:280] = (200, 30, 30)
    return chart


def _pixels(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.removeprefix("data:image/webp;base64,")))) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image.convert("RGB"))


def test_a_chart_of_few_colours_keeps_every_pixel_and_gets_a_palette(tmp_path):
    source = _saved(tmp_path / "chart.png", _chart())
    with Image.open(io.BytesIO(small_png(source))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), _chart())


def test_a_picture_of_many_colours_is_kept_as_it_is(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    source = _saved(tmp_path / "filters.png", colours)
    assert small_png(source) == source.read_bytes()


def test_a_page_has_charts_without_loss_and_no_picture_wider_than_asked(tmp_path):
    source = _saved(tmp_path / "chart.png", _chart())
    np.testing.assert_array_equal(_pixels(embedded(source, 1400)), _chart())
    assert _pixels(embedded(source, 150)).shape == (100, 150, 3)


def test_a_photo_is_smaller_with_loss(tmp_path):
    smooth = np.random.default_rng(0).normal(128, 40, (40, 40, 3)).clip(0, 255).astype(np.uint8)
    photo = np.asarray(Image.fromarray(smooth).resize((400, 400), Image.Resampling.BICUBIC))
    source = _saved(tmp_path / "photo.png", photo)
    error = np.abs(_pixels(embedded(source, 1400)).astype(int) - photo)
    assert 0 < error.mean() < 8
    assert len(embedded(source, 1400).uri) < source.stat().st_size / 2


def test_the_pages_of_a_figure_have_one_name(tmp_path):
    names = ["correlation.png", "correlation-2.png", "learning-curves.png", "learning-curves-13.png"]
    assert [figure_name(tmp_path / name) for name in names] == [*["correlation"] * 2, *["learning-curves"] * 2]
