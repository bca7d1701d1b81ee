"""Report of a sweep: a table, the best configuration as a study's file, and two figures.

The figures are drawn from the saved tables only.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import yaml

from experiments.measure.table import save_table
from experiments.report.summary import tables_folder
from experiments.report.tables import read_about, read_csv
from experiments.store.runs import write_atomic, write_json
from experiments.study.config import Study
from experiments.study.invocation import typed
from experiments.sweep.engine import Point, format_value
from experiments.sweep.file import SweepFile

TABLE_LINES = 15  # on the terminal
BEST = "best.yaml"
IMPORTANCE = ["parameter", "importance", "low", "high", "correlation", "p", "n", "explained"]  # columns


def save_tables(sweep: SweepFile, points: list[Point], folder: Path) -> None:
    """Write what the figures are drawn from: one row per point, how to scale the parameters, and their importance."""
    rows = [
        {
            "point": point.number,
            "state": point.state,
            sweep.metric: point.metric(sweep.metric),
            "epochs": len(point.history),
            "seconds": point.seconds,
            "run": point.run,
            "reason": point.reason,
            **point.values,
        }
        for point in points
    ]
    tables = tables_folder(folder)
    save_table(tables / "sweep.csv", pd.DataFrame(rows))
    scales = {name: _scale(parameter) for name, parameter in sweep.parameters.items() if "value" not in parameter}
    about = {"metric": sweep.metric, "maximize": sweep.maximize, "method": sweep.method, "scales": scales}
    write_json(tables / "sweep.json", about)
    from analysis.importance import parameter_importance

    table = read_table(folder)
    try:
        importances = parameter_importance(table[table["state"] == "done"], list(scales), sweep.metric)
    except ValueError as error:
        importances = pd.DataFrame(columns=IMPORTANCE)
        write_atomic(tables / "importance.txt", lambda file, error=error: file.write(f"{error}\n".encode()))
    else:
        (tables / "importance.txt").unlink(missing_ok=True)
    save_table(tables / "importance.csv", importances)


def _scale(parameter: dict[str, Any]) -> str:
    if "values" in parameter:
        return "category"
    return "log" if "log" in parameter.get("distribution", "") else "linear"


def read_table(folder: Path) -> pd.DataFrame:
    """Read the points of a sweep; categories are texts."""
    tables = tables_folder(folder)
    about = _about(folder)
    texts = dict.fromkeys([name for name, scale in about["scales"].items() if scale == "category"], str)
    missing = {about["metric"]: [""], "seconds": [""], "epochs": [""]}
    columns = ["point", "state", *missing, *about["scales"]]
    return read_csv(tables / "sweep.csv", columns, dtype=texts, keep_default_na=False, na_values=missing)


def _about(folder: Path) -> dict[str, Any]:
    return read_about(tables_folder(folder) / "sweep.json", ["metric", "maximize", "method", "scales"])


def draw_figures(folder: Path) -> list[Path]:
    """Draw both figures of a sweep from its saved tables; returns the files written."""
    from analysis.figures import importance, parallel_coordinates

    about = _about(folder)
    figures = folder / "figures"
    importances = read_csv(tables_folder(folder) / "importance.csv", IMPORTANCE)
    table = read_table(folder)
    return [
        *parallel_coordinates.draw(table, about["scales"], about["metric"], about["maximize"], figures),
        *importance.draw(importances, about["metric"], figures),
    ]


def best_point(sweep: SweepFile, points: list[Point]) -> Point | None:
    """Return the finished run with the best value, the first of equals; None if none has finished."""
    done = [(point.metric(sweep.metric), point) for point in points if point.state == "done"]
    known = [(value if sweep.maximize else -value, -point.number, point) for value, point in done if value is not None]
    return max(known, default=(0.0, 0, None), key=lambda entry: entry[:2])[2]


def save_best(sweep: SweepFile, best: Point, points: list[Point], study: Study, seeds: int, folder: Path) -> Path:
    """Write the best configuration as a study's file.

    Args:
        sweep: the file.
        best: the point.
        points: all of them.
        study: the one run of the best point.
        seeds: number of seeds of the study that the sweep varied.
        folder: folder of the sweep.
    """
    (variant,) = study.variants
    done = sum(point.state == "done" for point in points)
    path = folder / BEST
    settings = ", ".join(f"{name} {format_value(value)}" for name, value in best.values.items())
    head = {
        "Question": f"how good is the best point of the sweep {sweep.name} ({settings}) with other seeds?",
        "Command": typed("run", str(path)),
        "Time": f"{best.seconds:.0f} s a run where the sweep ran",
        "Result": f"{sweep.metric} {best.metric(sweep.metric):.4f} with seed 0, the best of {done} runs that came "
        "to their end, chosen on the test images it is measured on: expect less of other seeds",
    }
    lines = [
        line
        for key, text in head.items()
        for line in wrap(text, 106, initial_indent=f"{key + ':':<10}", subsequent_indent=" " * 10)
    ]
    content = {
        "question": f"How good is the best point of the sweep {sweep.name} with seeds that did not choose it?",
        "dataset": variant.dataset,
        "data": asdict(variant.views),
        "model": dict(variant.model),
        "recipe": asdict(variant.recipe),
        "measures": asdict(study.measures),
        "seeds": seeds,
    }
    text = (
        "".join(f"# {line}\n" for line in lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    )
    write_atomic(path, lambda file: file.write(text.encode()))
    return path


def summary(folder: Path) -> str:
    """Return the table on the terminal, from the saved tables."""
    about, table = _about(folder), read_table(folder)
    metric, names = about["metric"], list(about["scales"])
    states = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    order = table[metric].astype(float) * (-1 if about["maximize"] else 1) + np.where(table["state"] == "done", 0, 1e9)
    ranked = table.loc[order.sort_values(kind="stable", na_position="last").index]
    widths = [max(10, len(name) + 2) for name in names]
    heading = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    text = [
        f"{len(table)} points by {about['method']}: {states}; the best first, the unfinished last",
        f"{'point':>5}{metric:>{len(metric) + 2}}{'epochs':>8}{'seconds':>9}  {'state':<9}{heading}",
    ]
    for _, row in ranked.head(TABLE_LINES).iterrows():
        value = "-" if pd.isna(row[metric]) else f"{row[metric]:.4f}"
        cells = "".join(f"{format_value(row[name]):>{width}}" for name, width in zip(names, widths, strict=True))
        effort = f"{row['epochs']:>8}{row['seconds']:>9.0f}"
        text.append(f"{row['point'] + 1:>5}{value:>{len(metric) + 2}}{effort}  {row['state']:<9}{cells}")
    if len(ranked) > TABLE_LINES:
        text.append(f"… and {len(ranked) - TABLE_LINES} more in tables/sweep.csv")
    return "\n".join([*text, "", *_importance_lines(folder)])


def _importance_lines(folder: Path) -> list[str]:
    from analysis.importance import RELIABLE_FROM

    tables = tables_folder(folder)
    if (why_not := tables / "importance.txt").is_file():
        return [why_not.read_text(encoding="utf-8").strip()]
    importances = read_csv(tables / "importance.csv", IMPORTANCE)
    n, explained = int(importances["n"].iloc[0]), importances["explained"].iloc[0]
    doubt = f"; below {RELIABLE_FROM} runs it is not reliable" if n < RELIABLE_FROM else ""
    share = f"{explained:.0%} of the variance" if explained > 0 else "no better than the mean, so this says nothing"
    lines = [
        f"What mattered in {n} runs that came to their end (a forest predicts {share}{doubt})",
        f"{'parameter':<26}{'importance':>12}{'rank correlation':>20}",
    ]
    for _, row in importances.iterrows():
        rank = "categories" if pd.isna(row["correlation"]) else f"{row['correlation']:+.2f} (p {row['p']:.2g})"
        lines.append(f"{row['parameter']:<26}{row['importance']:>12.2f}{rank:>20}")
    return lines
