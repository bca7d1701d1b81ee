"""Tables for LaTeX, next to the CSV files that a paper would print."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.report.tables import read_csv
from experiments.store.runs import write_atomic

PRINTED = {  # file: the columns that a paper prints, with their headings
    "tradeoff": {
        "variant": "variant",
        "accuracy": "accuracy",
        "low": "low",
        "high": "high",
        "n": "$n$",
        "parameters": "parameters",
        "macs": "MACs",
        "latency": "ms per image",
    },
    "fronts": {"cost": "cost", "variant": "variant", "at": "at", "value": "accuracy", "probability": "on the front"},
    "equal_cost": {
        "equal": "equal",
        "variant": "variant",
        "baseline": "baseline",
        "difference": "difference",
        "low": "low",
        "high": "high",
        "p": "$p$",
    },
}


def write_latex(tables: Path) -> list[Path]:
    """Write ``<name>.tex`` next to each table that a paper prints; they need the package ``booktabs``."""
    written = []
    for name, headings in PRINTED.items():
        if not (tables / f"{name}.csv").is_file():
            continue
        table = read_csv(tables / f"{name}.csv", [])
        path = tables / f"{name}.tex"
        text = latex(table[[column for column in headings if column in table]], headings)
        write_atomic(path, lambda file, text=text: file.write(text.encode()))
        written.append(path)
    return written


def latex(table: pd.DataFrame, headings: dict[str, str]) -> str:
    """Return a ``tabular`` with ``booktabs`` rules: numbers to the right, texts escaped, missing values as dashes."""
    columns = [str(column) for column in table.columns]
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in columns]
    rows = [" & ".join(headings[column] for column in columns)]
    rows += [" & ".join(_cell(value) for value in row) for row in table.itertuples(index=False, name=None)]
    body = [f"{row} \\\\" for row in rows]
    layout = "".join("r" if number else "l" for number in numeric)
    lines = [f"\\begin{{tabular}}{{{layout}}}", "\\toprule", body[0], "\\midrule", *body[1:], "\\bottomrule"]
    return "\n".join([*lines, "\\end{tabular}", ""])


def _cell(value: object) -> str:
    if isinstance(value, str):
        return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in value)
    number = float(value)  # type: ignore[arg-type]
    if number != number:
        return "--"
    return f"{number:,.0f}" if abs(number) >= 1000 or number.is_integer() else f"{number:.3g}"
