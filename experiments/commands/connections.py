"""The figures ``connections``: diagrams of layers, and the wiring of whole networks."""

from __future__ import annotations

from argparse import ArgumentError
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from jsonargparse import ArgumentParser
from torch import nn

from analysis.figures import connections, page, wiring
from analysis.figures.connections import Diagram, count_lines
from analysis.scheme import Scheme, network_scheme
from experiments.errors import UsageError
from experiments.measure.table import save_table
from experiments.models.named import add_model_arguments, build_named_model, full_name
from experiments.store.runs import file_name
from experiments.study.config import parser_error, strict_parser
from experiments.study.execution import folder_path
from gconv import ChannelShuffle, GroupedConv2d, Partition
from gconv.partition import Spec

DEFAULT_MODEL = "alexnet"


def draw_connections(flags: list[str]) -> list[Path]:
    """Draw the diagrams of layers and the wiring of AlexNet; if the flags name a model, only the wiring of that model.

    Args:
        flags: ``--model=alexnet``, or any other model of the suite, or ``--model=torchvision:resnet50``; its arguments,
            such as ``--model.groups=log:4``; ``--input_size``; ``--runs_root``.

    Returns:
        Paths of the figures, in the folder ``connections`` of the run store, next to their tables.

    Raises:
        UsageError: no such model, unknown flags, arguments no network can have, a model that cannot be traced.
    """
    name = _model_name(flags)
    parser = _parser(name)
    try:
        given = parser.parse_args([flag for flag in flags if not flag.startswith("--model=")])
    except ArgumentError as error:
        raise UsageError(f"figures connections: {parser_error(error, parser)}") from None
    arguments = vars(given.model) if "model" in given else {}
    try:
        with torch.device("meta"):
            model = build_named_model(name, given)
        scheme = network_scheme(model, (3, given.input_size, given.input_size))
    except ValueError as error:
        raise UsageError(f"figures connections --model={name}: {error}") from None
    page.apply_style()
    folder = folder_path("--runs_root", given.runs_root) / "connections"
    drawn = [] if any(flag.startswith("--model") for flag in flags) else _draw_layers(folder)
    defaults = parser.get_defaults()
    named = {key: value for key, value in arguments.items() if key == "groups" or value != defaults[f"model.{key}"]}
    title = ", ".join([name, *(f"{key}={value}" for key, value in named.items() if value is not None)])
    stem = f"wiring-{file_name(title.replace(', ', '-').replace('=', '-'))}"
    save_table(folder / f"{stem}.csv", flow_table(scheme))
    return [*drawn, *wiring.draw(scheme, title, folder, stem)]


def connections_help(flags: list[str]) -> str:
    """Return every flag of the diagrams, with those of the model that the flags name."""
    return _parser(_model_name(flags)).format_help()


def _model_name(flags: list[str]) -> str:
    """Return the full name of the model that the flags name; AlexNet by default."""
    if "--model" in flags:
        raise UsageError("figures connections: --model needs a name, as in --model=alexnet")
    names = [flag.removeprefix("--model=") for flag in flags if flag.startswith("--model=")]
    return full_name(names[-1] if names else DEFAULT_MODEL)


def flow_table(scheme: Scheme) -> pd.DataFrame:
    """Return one row per flow of filters, with the names of the convolutions and their units, counted from 1."""
    table = pd.DataFrame([asdict(flow) for flow in scheme.flows]).drop(columns=["source_start", "reader_start"])
    for column in ("source", "reader"):
        table[column] = [scheme.columns[number].name for number in table[column]]
        table[f"{column}_unit"] += 1
    return table


def layer_table(drawn: list[Diagram]) -> pd.DataFrame:
    """Return a row per diagram: its formula, its multiplications for one output pixel, and those of a standard 3×3."""
    rows = [(d, count_lines(d)) for d in drawn]
    columns = ["title", "formula", "multiplications", "standard", "share"]
    return pd.DataFrame([(d.title, d.formula, c.total, c.dense, c.total / c.dense) for d, c in rows], columns=columns)


def _draw_layers(folder: Path) -> list[Path]:
    save_table(folder / "layers.csv", layer_table(diagrams()))
    return connections.draw(diagrams(), folder)


def _parser(name: str) -> ArgumentParser:
    parser = strict_parser("experiments figures connections")
    add_model_arguments(parser, name)
    parser.add_argument("--runs_root", type=str, default="runs", help="The figures go to connections/ in here.")
    return parser


def diagrams() -> list[Diagram]:
    """Return single layers of 8 channels, then the blocks that are built from them.

    Formulas are those of the article ("Why MobileNet and its variants are fast", yu4u) and, for logarithmic groups,
    of the fractions 1/2, 1/4, …; B are the inner channels of a block.
    """

    def conv(kernel: int, inputs: int = 8, outputs: int = 8, groups: Spec = 1) -> GroupedConv2d:
        return GroupedConv2d(inputs, outputs, kernel, padding="same", groups=groups)

    def one(title: str, formula: str, layer: nn.Module) -> Diagram:
        return Diagram(title, formula, ((title, layer),))

    shuffle = ("shuffle", ChannelShuffle(Partition.uniform(8, 2)))
    return [
        one("3×3, standard", "HWNK²M", conv(3)),
        one("3×3, 2 groups", "HWNK²M/G", conv(3, groups=2)),
        one("3×3, log:4 groups", "HWNK²M(⅓ + ⅔·4¹⁻ⁿ)", conv(3, groups="log:4")),
        one("3×3, depthwise", "HWNK²", conv(3, groups=8)),
        one("1×1", "HWNM", conv(1)),
        one("1×1, 2 groups", "HWNM/G", conv(1, groups=2)),
        Diagram("1×1, 2 groups, shuffle", "HWNM/G", (("1×1", conv(1, groups=2)), shuffle)),
        Diagram("Depthwise separable", "HWN(K² + M)", (("3×3", conv(3, groups=8)), ("1×1", conv(1)))),
        Diagram(
            "Bottleneck (ResNet)",
            "HW(2NB + K²B²)",
            (("1×1", conv(1, 8, 4)), ("3×3", conv(3, 4, 4)), ("1×1", conv(1, 4, 8))),
            shortcut=True,
        ),
        Diagram(
            "ResNeXt, 2 groups",
            "HW(2NB + K²B²/G)",
            (("1×1", conv(1, 8, 4)), ("3×3", conv(3, 4, 4, 2)), ("1×1", conv(1, 4, 8))),
            shortcut=True,
        ),
        Diagram(
            "Inverted (MobileNet v2)",
            "HW(2NB + K²B)",
            (("1×1", conv(1, 8, 12)), ("3×3", conv(3, 12, 12, 12)), ("1×1", conv(1, 12, 8))),
            shortcut=True,
        ),
        Diagram(
            "ShuffleNet, 2 groups",
            "HW(2NB/G + K²B)",
            (
                ("1×1", conv(1, 8, 4, 2)),
                ("shuffle", ChannelShuffle(Partition.uniform(4, 2))),
                ("3×3", conv(3, 4, 4, 4)),
                ("1×1", conv(1, 4, 8, 2)),
            ),
            shortcut=True,
        ),
    ]
