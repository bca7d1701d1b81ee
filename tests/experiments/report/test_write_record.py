"""Pictures of a record: as small as they can be without looking different."""

import io

import numpy as np
from PIL import Image

from experiments.report.write_record import small_png


def _saved(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_a_chart_of_few_colours_keeps_every_pixel_and_gets_a_palette(tmp_path):
    grey = np.linspace(0, 240, 120).astype(np.uint8)
    chart = np.full((200, 300, 3), 255, np.uint8)
    chart[20:180, 30:150] = grey[None, :, None]
    chart[40:60, 200:280] = (200, 30, 30)
    source = _saved(tmp_path / "chart.png", chart)
    with Image.open(io.BytesIO(small_png(source))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), chart)


def test_a_picture_of_many_colours_is_kept_as_it_is(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    source = _saved(tmp_path / "filters.png", colours)
    assert small_png(source) == source.read_bytes()
