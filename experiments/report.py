"""What a study shows at its end: one table on the terminal, and its figures; both from saved tables only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.stats import mean_interval
from analysis.tradeoff import tradeoff_table
from experiments.errors import UsageError
from experiments.runs import file_name, write_atomic

LINES = 24  # of correlation in the summary, at most one per layer
SEED_DRAWN = 0  # the seed whose filters and matrices are drawn: the first, never the prettiest

# Of each measure the nulls that could explain it away: of the network untrained, and of another kind.
NULLS = {
    "cka_between": ("similarity of groups (CKA)", "arbitrary partition"),
    "clusters_are_groups_computed": ("filters cluster as grouped (ARI)", ""),
    "on_block_energy": ("between layers, on the blocks", "block areas"),
    "separation_colour_auc": ("groups told by colour (AUC)", "labels permuted"),
    "separation_frequency_auc": ("groups told by frequency (AUC)", "labels permuted"),
    "latent_colour_correlation": ("colour in the second layer", "labels permuted"),
}


def tables_folder(study_folder: Path) -> Path:
    """Where a study's tables lie."""
    return study_folder / "tables"


def draw_figures(study_folder: Path) -> list[Path]:
    """Draw every figure of a study.

    Raises:
        UsageError: the study has no tables yet.
    """
    from analysis.figures import curves, tradeoff

    tables = tables_folder(study_folder)
    if not (tables / "measures.csv").is_file():
        raise UsageError(
            f"{tables} has no measures.csv: run the study first (make experiment NAME={study_folder.name})"
        )
    table = read_measures(study_folder)
    arrays = {}
    for variant in dict.fromkeys(table["variant"]):
        path = tables / f"{file_name(variant)}-seed{SEED_DRAWN}.npz"
        if path.is_file():
            with np.load(path) as file:
                arrays[variant] = dict(file)
    folder = study_folder / "figures"
    return [
        *draw_measured(table, arrays, folder),
        *tradeoff.draw(table, folder),
        *curves.draw(pd.read_csv(tables / "curves.csv"), folder),
    ]


def draw_measured(table: pd.DataFrame, arrays: dict[str, dict[str, np.ndarray]], folder: Path) -> list[Path]:
    """Draw what was measured of trained networks.

    Args:
        table: the long table.
        arrays: of each variant, as ``experiments.measure`` returns them.
        folder: where the figures go.

    Returns:
        The files written.
    """
    from analysis.figures import correlation, filters, page

    page.apply_style()
    return [*filters.draw(arrays, folder), *correlation.draw(arrays, folder)]


def read_measures(study_folder: Path) -> pd.DataFrame:
    """The long table of a study."""
    return read_table(tables_folder(study_folder) / "measures.csv")


def read_table(path: Path) -> pd.DataFrame:
    """A long table as it was written: texts stay texts, also those such as ``null`` or ``4``."""
    texts = ["study", "variant", "layer", "measure", "null", "groups", "unit"]
    table = pd.read_csv(
        path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values={"seed": "", "value": ""}
    )
    return table


def keep_results(study_folder: Path, results: Path, readme: Path) -> list[Path]:
    """Copy a study's tables and figures to the record, and its accuracy table into the README.

    The README's table stands between ``<!-- results NAME -->`` and ``<!-- end NAME -->``, where it has these lines.

    Returns:
        The files written.

    Raises:
        UsageError: the study has no tables yet.
    """
    name, kept = study_folder.name, []
    figures = draw_figures(study_folder)
    sources = [
        tables_folder(study_folder) / f"{table}.csv" for table in ("measures", "notes", "curves", "layers", "runs")
    ]
    sources.append(tables_folder(study_folder) / "study.json")
    for source in [path for path in (*sources, *figures) if path.is_file()]:
        target = results / name / source.name
        write_atomic(target, lambda file, source=source: file.write(source.read_bytes()))
        kept.append(target)
    table = read_measures(study_folder)
    text = results / name / "summary.txt"
    write_atomic(text, lambda file: file.write(f"{summary(table)}\n".encode()))
    page = readme.read_text()
    start, end = f"<!-- results {name} -->\n", f"<!-- end {name} -->"
    if start in page and end in page:
        before, rest = page.split(start, 1)
        overrides = json.loads((tables_folder(study_folder) / "study.json").read_text())["overrides"]
        block = markdown(table, pd.read_csv(tables_folder(study_folder) / "runs.csv"), overrides)
        page = before + start + block + end + rest.split(end, 1)[1]
        write_atomic(readme, lambda file: file.write(page.encode()))
        kept.append(readme)
    return [*kept, text]


def markdown(table: pd.DataFrame, runs: pd.DataFrame, overrides: dict[str, object]) -> str:
    """Accuracy against cost as a table for the README, with where it was measured and what was overridden."""
    lines = ["| variant | accuracy | n | parameters | MACs | ms per image |", "|---|---|---|---|---|---|"]
    for _, row in tradeoff_table(table).iterrows():
        interval = "" if row["n"] < 2 else f" [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"| {row['variant']} | {row['accuracy']:.3f}{interval} | {row['n']} | {row['parameters']:,.0f} "
            f"| {row['macs']:,.0f} | {row['latency']:.3f} |"
        )
    intervals = "One seed: no interval" if (runs.groupby("variant").size() == 1).all() else "95% intervals over seeds"
    where = "; ".join(dict.fromkeys(f"{r['device']}, {r['precision']}, torch {r['torch']}" for _, r in runs.iterrows()))
    commits = ", ".join(dict.fromkeys(f"{c[:10]}{c[40:]}" for c in runs["commit"].fillna("unknown")))
    flags = " ".join(f"--{key}={value}" for key, value in overrides.items())
    with_flags = f" Run with `{flags}`." if flags else ""
    return "\n".join([*lines, "", f"{intervals}; {where}; commit {commits}.{with_flags}", ""])


def summary(table: pd.DataFrame) -> str:
    """The study in plain text: accuracy against cost, then correlation and colour with their nulls."""
    lines = [
        _accuracy_lines(tradeoff_table(table)),
        _correlation_lines(table),
        _colour_lines(table),
        _null_lines(table),
    ]
    return "\n\n".join(part for part in lines if part)


def _accuracy_lines(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    baseline = rows["variant"].iloc[0]
    text = [
        f"Accuracy against cost (mean over seeds, 95% interval; difference to {baseline}, paired by seed)",
        f"{'variant':<24}{'accuracy':<28}{'difference':<28}{'parameters':>12}{'MACs':>14}{'ms/image':>10}",
    ]
    for _, row in rows.iterrows():
        interval = "" if row["n"] < 2 else f" [{row['low']:.3f}, {row['high']:.3f}]"
        difference = "" if pd.isna(row["difference"]) else f"{row['difference']:+.3f}"
        if difference and not pd.isna(row["difference_low"]):
            difference += f" [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        accuracy = f"{row['accuracy']:.3f}{interval} n={row['n']}"
        text.append(
            f"{row['variant']:<24}{accuracy:<28}{difference:<28}"
            f"{row['parameters']:>12,.0f}{row['macs']:>14,.0f}{row['latency']:>10.3f}"
        )
    return "\n".join(text)


def _correlation_lines(table: pd.DataFrame) -> str:
    ratios = table[table["measure"].str.startswith("ratio_") & (table["null"] == "")]
    if ratios.empty:
        return ""
    keys, heading = ["variant", "layer", "measure"], "layer, groups by"
    if len(ratios.drop_duplicates(keys)) > LINES:  # a deep network: the mean over its layers
        keys, heading = ["variant", "measure"], "groups by"
    text = [
        "Correlation between filters: mean |r| within groups / between groups (test images)",
        f"{'variant':<24}{heading:<20}{'trained':<22}{'untrained':<22}{'trained - untrained':<22}p < .05",
    ]
    for key, rows in ratios.groupby(keys, sort=False):
        labels = dict(zip(keys, key, strict=True))
        side = str(labels["measure"]).removeprefix("ratio_")
        layers = rows["layer"].nunique()
        over = f"{side}, {layers} layer{'s' if layers > 1 else ''}"
        where = f"{labels['layer']}, {side}" if "layer" in labels else over
        same = table["layer"].isin(rows["layer"]) & (table["variant"] == labels["variant"])
        null = table[same & (table["measure"] == labels["measure"]) & (table["null"] == "untrained")]
        trained, untrained = (part.groupby("seed")["value"].mean() for part in (rows, null))
        p = table.loc[same & (table["measure"] == f"within_over_between_{side}_p"), "value"]
        unit = "seeds" if "layer" in labels else "layers × seeds"
        text.append(
            f"{labels['variant']:<24}{where:<20}{_short(trained):<22}{_short(untrained):<22}"
            f"{_short(trained - untrained):<22}{(p < 0.05).sum()} of {len(p)} {unit}"
        )
    return "\n".join(text)


def _colour_lines(table: pd.DataFrame) -> str:
    learned = table[table["measure"] == "learned_filters"]
    if learned.empty:
        return ""
    text = [
        "Colour: share of first-layer filters' energy off the grey axis, learned filters only",
        f"{'variant':<24}{'learned filters':<24}{'colour index':<24}{'difference of groups':<26}p < .05",
    ]
    for variant, rows in learned.groupby("variant", sort=False):
        index = table[(table["variant"] == variant) & (table["measure"] == "colour_index")]["value"]
        difference = table[(table["variant"] == variant) & (table["measure"] == "colour_difference")]["value"]
        p = table[(table["variant"] == variant) & (table["measure"] == "colour_difference_p")]["value"]
        text.append(
            f"{variant:<24}{_short(rows['value']):<24}{_short(index) if len(index) else 'none learned':<24}"
            f"{_short(difference) if len(difference) else '-':<26}"
            f"{f'{(p < 0.05).sum()} of {len(p)} seeds' if len(p) else ''}"
        )
    return "\n".join(text)


def _null_lines(table: pd.DataFrame) -> str:
    text = [
        "Groups against their nulls (mean over layers; 95% interval over seeds)",
        f"{'variant':<24}{'measure':<32}{'trained':<20}{'untrained':<20}null",
    ]
    for variant in dict.fromkeys(table["variant"]):
        for measure, (label, other) in NULLS.items():
            rows = table[(table["variant"] == variant) & (table["measure"] == measure)]
            values = {null: of.groupby("seed")["value"].mean() for null, of in rows.groupby("null")}
            if not values.keys() & {"", other}:
                continue
            cells = [_short(values[null]) if null in values else "-" for null in ("", "untrained")]
            null = f"{_short(values[other])} {other}" if other in values else "-"
            text.append(f"{variant:<24}{label:<32}{cells[0]:<20}{cells[1]:<20}{null}")
    return "\n".join(text) if len(text) > 2 else ""


def _short(values: pd.Series) -> str:
    finite = values.dropna()
    if finite.empty:
        return "undefined"
    if np.isinf(finite).any():
        return "infinite"
    estimate = mean_interval(finite)
    interval = "" if estimate.n < 2 else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.mean:.2f}{interval}"
