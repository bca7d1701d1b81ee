"""Summary at the end of a study: one table on the terminal, and the figures; both from saved tables only."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd

from analysis.intervals import SEEDS_FOR_INTERVAL, UNBOUNDED, Bounds, measure_bounds, seed_estimate
from analysis.nulls import ARBITRARY_PARTITION, LABELS_PERMUTED, ROTATED_FILTERS, UNTRAINED
from analysis.tradeoff import (
    COSTS,
    EQUAL_COST,
    EQUAL_WITHIN,
    EQUALITIES,
    FRONT_COLUMNS,
    MORE_COSTS,
    disturbed,
    equal_pairs,
    front_probability,
    front_table,
    tradeoff_table,
)
from experiments.errors import UsageError
from experiments.report.tables import read_arrays, read_csv, read_table
from experiments.store.runs import file_name, short_commit
from experiments.study.invocation import typed

LINES = 24  # most lines of one table of the summary
FRONT_AT_LEAST = 0.05  # share of resamplings from which a variant is named as on a front
SEED_DRAWN = 0  # the seed whose filters and matrices are drawn: the first, never the prettiest

TABLES = ("measures", "notes", "curves", "layers", "runs", "missing", "tradeoff", "fronts", "equal_cost")

# Of each measure the nulls that could explain it away: of the network untrained, and of another kind.
NULLS = {
    "cka_between": ("similarity of groups (CKA)", ARBITRARY_PARTITION),
    "clusters_are_groups_computed": ("clusters are the groups (ARI)", None),
    "on_block_share": ("between layers, beyond chance", ROTATED_FILTERS),
    "separation_colour_auc": ("separation by colour (AUC)", LABELS_PERMUTED),
    "separation_frequency_auc": ("separation by frequency (AUC)", LABELS_PERMUTED),
    "latent_colour_correlation": ("colour in the second layer", LABELS_PERMUTED),
}


def tables_folder(study_folder: Path) -> Path:
    """Return the folder of a study's tables."""
    return study_folder / "tables"


def check_tables(study_folder: Path) -> None:
    """Raise if a study has no tables yet.

    Raises:
        UsageError: names the folder and the command.
    """
    tables = tables_folder(study_folder)
    if not (tables / "measures.csv").is_file():
        raise UsageError(f"{tables} has no measures.csv: run the study first ({typed('run', study_folder.name)})")


def draw_figures(study_folder: Path) -> list[Path]:
    """Draw every figure of a study.

    Raises:
        UsageError: the study has no tables yet.
    """
    from analysis.figures.registry import draw_all
    from analysis.figures.saved import Saved

    check_tables(study_folder)
    tables, table = tables_folder(study_folder), read_measures(study_folder)
    arrays = {}
    for variant in dict.fromkeys(table["variant"]):
        path = tables / f"{file_name(variant)}-seed{SEED_DRAWN}.npz"
        if path.is_file():
            arrays[variant] = read_arrays(path)
    curves = read_csv(tables / "curves.csv", ["variant", "seed", "epoch"], numbers=("seed", "epoch"))
    fronts = read_csv(tables / "fronts.csv", FRONT_COLUMNS, numbers=("at", "value", "probability"))
    runs = read_csv(tables / "runs.csv", ["variant"], dtype=str)
    return draw_all(Saved(table, arrays, curves, fronts, runs), study_folder / "figures")


def draw_measured(table: pd.DataFrame, arrays: dict[str, dict[str, np.ndarray]], folder: Path) -> list[Path]:
    """Draw the figures of networks without learning curves; returns the files written.

    Args:
        table: the long table.
        arrays: arrays of each variant, by name.
        folder: folder for the figures.
    """
    from analysis.figures.registry import draw_all
    from analysis.figures.saved import Saved

    return draw_all(Saved(table, arrays), folder)


def draw_measured_folder(folder: Path) -> list[Path]:
    """Draw the figures of a folder that ``measure`` wrote again."""
    table = read_table(folder / "measures.csv")
    return draw_measured(table, {table["variant"].iloc[0]: read_arrays(folder / "arrays.npz")}, folder / "figures")


def read_measures(study_folder: Path) -> pd.DataFrame:
    """Return the long table of a study."""
    return read_table(tables_folder(study_folder) / "measures.csv")


def markdown(table: pd.DataFrame, runs: pd.DataFrame, overrides: dict[str, object]) -> str:
    """Return accuracy against cost as a Markdown table for ``docs/index.md``, with hardware and overridden keys."""
    lines = ["| variant | accuracy | n | parameters | MACs | ms per image |", "|---|---|---|---|---|---|"]
    for _, row in tradeoff_table(table).iterrows():
        lines.append(
            f"| {row['variant']} | {row['accuracy']:.3f}{spread(row)} | {row['n']} | {row['parameters']:,.0f} "
            f"| {row['macs']:,.0f} | {time_of_image(row)} |"
        )
    most = runs.groupby("variant").size().max()
    intervals = f"[95% interval] from {SEEDS_FOR_INTERVAL} seeds on, (least … largest) of fewer"
    intervals = "One seed: no interval" if most == 1 else intervals
    intervals += "; time: median (quartiles of the calls)"
    if loud := disturbed(table):
        intervals += f", disturbed by other work: {', '.join(loud)}"
    where = "; ".join(dict.fromkeys(f"{r['device']}, {r['precision']}, torch {r['torch']}" for _, r in runs.iterrows()))
    commits = ", ".join(dict.fromkeys(short_commit(c) for c in runs["commit"].fillna("unknown")))
    flags = " ".join(f"--{key}={value}" for key, value in overrides.items())
    with_flags = f" Run with `{flags}`." if flags else ""
    return "\n".join([*lines, "", f"{intervals}; {where}; commit {commits}.{with_flags}", ""])


def summary(table: pd.DataFrame) -> str:
    """Return the study in plain text: accuracy against cost, correlation and colour, and groups against their nulls."""
    lines = [
        _accuracy_lines(tradeoff_table(table)),
        _front_lines(table),
        _equal_cost_lines(table),
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
        f"Accuracy against cost (mean over seeds; difference to {baseline}, paired by seed)",
        f"[95% interval] from {SEEDS_FOR_INTERVAL} seeds on, (least … largest) of fewer; time: median (quartiles)",
        f"{'variant':<24}{'accuracy':<30}{'difference':<28}{'parameters':>12}{'MACs':>14}  ms/image",
    ]
    for _, row in rows.iterrows():
        difference = (
            "" if pd.isna(row["difference"]) else f"{row['difference']:+.3f}{spread(row, 'difference_', '+.3f')}"
        )
        accuracy = f"{row['accuracy']:.3f}{spread(row)} n={row['n']}"
        text.append(
            f"{row['variant']:<24}{accuracy:<30}{difference:<28}"
            f"{row['parameters']:>12,.0f}{row['macs']:>14,.0f}  {time_of_image(row)}"
        )
    return "\n".join(text)


def spread(row: pd.Series, of: str = "", form: str = ".3f") -> str:
    """Return `` [low, high]``, the interval over seeds; `` (least … most)`` of fewer than six; empty for one."""
    low, high, least, most = (row[f"{of}{end}"] for end in ("low", "high", "least", "most"))
    if not pd.isna(low):
        return f" [{low:{form}}, {high:{form}}]"
    return f" ({least:{form}} … {most:{form}})" if least < most else ""


def time_of_image(row: pd.Series) -> str:
    """Return the median and quartiles of the time of an image."""
    if pd.isna(row["latency_lower"]) or pd.isna(row["latency_upper"]):
        return "-" if pd.isna(row["latency"]) else f"{row['latency']:.3f}"
    return f"{row['latency']:.3f} ({row['latency_lower']:.3f} … {row['latency_upper']:.3f})"


def _front_lines(table: pd.DataFrame) -> str:
    """Return the variants on the Pareto front of accuracy against each cost, with their probability."""
    if table["variant"].nunique() < 2:
        return ""
    text = ["On the Pareto front of accuracy against a cost (share of resampled seeds, and times, in which they are)"]
    for cost, label in (COSTS | MORE_COSTS).items():
        front = front_probability(table, cost)
        front = front[front["on_front"] | (front["probability"] >= FRONT_AT_LEAST)]
        if front.empty:
            continue
        members = [
            row["variant"] if pd.isna(row["probability"]) else f"{row['variant']} {row['probability']:.2f}"
            for _, row in front.iterrows()
        ]
        text += wrap(", ".join(members), 118, initial_indent=f"{label:<36}", subsequent_indent=" " * 36)
    return "\n".join(text) if len(text) > 1 else ""


def _equal_cost_lines(table: pd.DataFrame) -> str:
    """Return differences of accuracy between variants with equal groups, parameters or MACs; each names which."""
    rows = []
    for by in EQUALITIES:
        for _, pair in equal_pairs(table, by).iterrows():
            interval = spread(pair, form="+.3f")
            tested = [value if pair["n"] > 1 else np.nan for value in (pair["p"], pair["p_equivalent"])]
            p, same = ("-" if pd.isna(value) else f"{value:.3f}" for value in tested)
            name = f"{pair['variant']} - {pair['baseline']}"
            rows.append(f"{by:<12}{name:<44}{f'{pair.difference:+.3f}{interval} n={pair.n}':<34}{p:<10}{same}")
    if not rows:
        return ""
    more = [f"… and {len(rows) - LINES} more pairs in tables/equal_cost.csv"] if len(rows) > LINES else []
    heading = [
        f"At equal cost (within {EQUAL_COST:.0%}): difference of accuracy, paired by seed (p by sign flips)",
        f"{'equal':<12}{'variants':<44}{'difference':<34}{'p':<10}p of equality within {EQUAL_WITHIN:g}",
    ]
    return "\n".join([*heading, *rows[:LINES], *more])


def tradeoff_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of accuracy against cost by file name: per variant, Pareto fronts, and at equal cost."""
    equal = [equal_pairs(table, by).assign(equal=by) for by in EQUALITIES]
    return {
        "tradeoff": tradeoff_table(table),
        "fronts": front_table(table),
        "equal_cost": pd.concat(equal, ignore_index=True),
    }


def _correlation_lines(table: pd.DataFrame) -> str:
    ratios = table[table["measure"].str.startswith("ratio_") & (table["null"] == "")]
    ratios = ratios[ratios["measure"] != "ratio_input_of_dense"]  # some rows of ratio_input once more
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
        null = table[same & (table["measure"] == labels["measure"]) & (table["null"] == UNTRAINED)]
        trained, untrained = (part.groupby("seed")["value"].mean() for part in (rows, null))
        bounds = measure_bounds(str(labels["measure"]))
        p = table.loc[same & (table["measure"] == f"within_over_between_{side}_p"), "value"]
        unit = "seeds" if "layer" in labels else "layers × seeds"
        text.append(
            f"{labels['variant']:<24}{where:<20}{_short(trained, bounds):<22}{_short(untrained, bounds):<22}"
            f"{_short(trained - untrained):<22}{(p < 0.05).sum()} of {len(p)} {unit}"
        )
    return "\n".join(text)


def _colour_lines(table: pd.DataFrame) -> str:
    learned = table[table["measure"] == "learned_filters"]
    if learned.empty:
        return ""
    text = [
        "Colour: share of first-layer filters' energy off the grey axis, learned filters only",
        f"{'variant':<24}{'learned filters':<22}{'colour index':<22}{'difference of groups':<22}{'by chance':<12}"
        "split by colour",
    ]
    for variant, rows in learned.groupby("variant", sort=False):
        of_variant = table[table["variant"] == variant].set_index(["measure", "null"])["value"]
        index, difference, chance, split = (
            of_variant[of_variant.index.isin([key])]
            for key in (
                ("colour_index", ""),
                ("colour_difference", ""),
                ("colour_difference", LABELS_PERMUTED),
                ("colour_split", ""),
            )
        )
        share = measure_bounds("colour_index", "fraction")
        colour = _short(index, share) if len(index) else "none learned"
        text.append(
            f"{variant:<24}{_short(rows['value'], share):<22}{colour:<22}"
            f"{_short(difference, measure_bounds('colour_difference')) if len(difference) else '-':<22}"
            f"{f'{chance.mean():.2f}' if len(chance) else '-':<12}"
            f"{f'{split.sum():.0f} of {len(split)} seeds' if len(split) else '-'}"
        )
    return "\n".join(text)


def _null_lines(table: pd.DataFrame) -> str:
    text = [
        "Groups against their nulls (mean over layers and seeds, intervals as above)",
        f"{'variant':<24}{'measure':<32}{'trained':<20}{'untrained':<20}null",
    ]
    for variant in dict.fromkeys(table["variant"]):
        for measure, (label, other) in NULLS.items():
            rows = table[(table["variant"] == variant) & (table["measure"] == measure)]
            values = {null: of.groupby("seed")["value"].mean() for null, of in rows.groupby("null")}
            if not values.keys() & {"", other}:
                continue
            bounds = measure_bounds(measure, str(rows["unit"].iloc[0]))
            cells = [_short(values[null], bounds) if null in values else "-" for null in ("", UNTRAINED)]
            null = f"{_short(values[other], bounds)} {other}" if other in values else "-"
            text.append(f"{variant:<24}{label:<32}{cells[0]:<20}{cells[1]:<20}{null}")
    return "\n".join(text) if len(text) > 2 else ""


def _short(values: pd.Series, bounds: Bounds = UNBOUNDED) -> str:
    finite = values.dropna()
    if finite.empty:
        return "undefined"
    if np.isinf(finite).any():
        return "infinite"
    return seed_estimate(finite.to_numpy(), bounds).text(".2f")
