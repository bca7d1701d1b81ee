"""What all figures share: paper width, fonts, colours, and how they are saved."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from tueplots import axes, figsizes, fontsizes

WIDTH = figsizes.neurips2024()["figure.figsize"][0]  # inches


def apply_style() -> None:
    """Set fonts, lines and colours for every figure that follows; TrueType is embedded in PDFs."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    settings = {
        **fontsizes.neurips2024(),
        **axes.lines(),
        **{"figure.titlesize": 9, "axes.titlesize": 7, "axes.labelsize": 8, "legend.fontsize": 8},
        **{"pdf.fonttype": 42, "ps.fonttype": 42, "font.family": "DejaVu Sans", "savefig.dpi": 200},
    }
    for key, value in settings.items():
        plt.rcParams[key] = value  # type: ignore[index]


def variant_colours(variants: list[str]) -> dict[str, tuple[float, float, float]]:
    """The colour of each variant, the same in every figure of a study."""
    return dict(
        zip(variants, sns.color_palette("colorblind" if len(variants) <= 10 else "husl", len(variants)), strict=True)
    )


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF and PNG and close it; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    for path in paths:
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            figure.savefig(fresh, format=path.suffix[1:], bbox_inches="tight")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    plt.close(figure)
    return paths
