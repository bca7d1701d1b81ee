"""The figure of groups on devices, from a table."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from analysis.figures import group_parallel
from figure_checks import checked


def table(variants):
    rows = [
        {"variant": f"{family}-{devices}", "measure": measure, "value": value}
        for family, devices in variants
        for measure, value in {
            "devices": devices,
            "memory_per_device": 4e8 / devices,
            "memory_balance": 1.0,
            "imbalance": devices**0.5 if family == "log" else 1.0,
            "sent": 1e7 * (devices - 1),
            "sent_into_grouped": 0.0 if devices > 1 else float("nan"),
            "step_time": 0.5,
            "step_time_lower": 0.4,
            "step_time_upper": 0.7,
        }.items()
    ]
    return pd.DataFrame(rows).assign(study="group-parallel", seed=float("nan"), layer="", null="", groups="", unit="")


@pytest.mark.parametrize(
    "variants",
    [
        [
            ("devices", 1),
            ("devices", 2),
            ("devices", 4),
            ("ddp", 2),
            ("ddp", 4),
            ("uniform", 2),
            ("log", 1),
            ("log", 4),
        ],
        [("devices", 2)],
        [("a-very-long-name-of-a-family-of-variants-that-somebody-chose", k) for k in (1, 2, 4, 8)],
    ],
    ids=["all", "one", "others"],
)
def test_it_is_drawn_from_whatever_was_measured(tmp_path, variants):
    checked(group_parallel.draw(table(variants), tmp_path))


def test_what_is_drawn_is_what_the_table_says(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(group_parallel.page, "save", lambda figure, *_: kept.append(figure) or [])
    group_parallel.draw(table([("devices", 1), ("devices", 4), ("ddp", 4), ("log", 4)]), tmp_path)
    (figure,) = kept
    memory, sent, time, balance = figure.axes
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in memory.get_lines()}
    assert drawn[1, 4] == (400, 100), "megabytes, of groups and the dashed ideal"
    assert [tuple(line.get_ydata()) for line in sent.get_lines()] == [(30,), (30,)], "one device sends nothing"
    (bars,) = time.containers[0].lines[2]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(0.4, 0.7)] * 2
    assert [tuple(line.get_ydata()) for line in balance.get_lines()] == [(2.0,), (1.0,)]
    assert "none enters a grouped layer" in " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    plt.close(figure)


def test_a_table_without_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no measure devices"):
        group_parallel.draw(table([("devices", 1)]).query("measure == 'sent'"), tmp_path)
