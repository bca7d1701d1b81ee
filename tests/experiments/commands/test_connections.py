"""The connection diagrams as a user asks for them."""

import signal
import sys

import pandas as pd
import pytest

from experiments import __main__ as command_line


def run(capsys, monkeypatch, *arguments):
    """Exit code, lines of standard output and standard error of ``figures …``, in this process."""
    monkeypatch.setattr(sys, "argv", ["experiments", "figures", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code = command_line.entry()
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_by_default_layers_and_alexnet_are_drawn_beside_their_tables(capsys, monkeypatch, tmp_path):
    code, out, _ = run(capsys, monkeypatch, "connections", f"--runs_root={tmp_path}")
    folder = tmp_path / "connections"
    figures = {f"{name}.{kind}" for name in ("layers", "wiring-alexnet-groups-2") for kind in ("pdf", "png")}
    tables = {"layers.csv", "wiring-alexnet-groups-2.csv"}
    assert code == 0
    assert set(out) == {str(folder / name) for name in figures}
    assert {path.name for path in folder.iterdir()} == figures | tables
    flows = pd.read_csv(folder / "wiring-alexnet-groups-2.csv")
    assert flows[flows["source"] == "conv1"][["reader", "reader_unit", "filters"]].values.tolist() == [
        ["conv2", 1, 48],
        ["conv2", 2, 48],
    ]
    layers = pd.read_csv(folder / "layers.csv").set_index("title")
    assert layers.loc["3×3, log:4 groups", "share"] == 11 / 32


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--model=small", "--model.groups=log:4", "--model.width=16"], "wiring-small-groups-log_4-width-16"),
        (["--model.groups=4", "--input_size=112"], "wiring-alexnet-groups-4"),
        (["--model=torchvision:squeezenet1_1"], "wiring-torchvision_squeezenet1_1"),
    ],
    ids=" ".join,
)
def test_where_the_flags_name_a_network_it_alone_is_drawn(capsys, monkeypatch, tmp_path, flags, name):
    code, out, err = run(capsys, monkeypatch, "connections", *flags, f"--runs_root={tmp_path}")
    assert (code, err) == (0, "")
    assert out == [str(tmp_path / "connections" / f"{name}.{kind}") for kind in ("pdf", "png")]
    assert (tmp_path / "connections" / f"{name}.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conections"], ["NAME=conections", "did you mean connections", "quickstart"]),
        (["quikstart"], ["NAME=quikstart", "did you mean quickstart", "alexnet-groups", "connections"]),
        (["connections", "--model=alexnt"], ["alexnt", "did you mean alexnet", "torchvision:NAME"]),
        (["connections", "--model"], ["--model=alexnet"]),
        (["connections", "--model.groups=7"], ["7 equal groups"]),
        (["connections", "--model.group=2"], ["model.group", "model.groups"]),
        (["connections", "--json"], ["json", "input_size", "runs_root"]),
        (["connections", "x"], ["x"]),
        (["connections", "--input_size=0"], ["--input_size=0", "at least 1"]),
        (["connections", "--input_size=20"], ["input_size=20"]),
        (["connections", "--model=small", "--input_size=1"], ["small"]),
        (["connections", "--model=torchvision:resnet51"], ["resnet51", "torchvision:resnet50"]),
        (["connections", "--model=torchvision:resnet18", "--model.groups=2"], ["model.groups", "input_size"]),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, words):
    flags = [f"--runs_root={tmp_path / 'runs'}"] if arguments else []
    code, _, err = run(capsys, monkeypatch, *arguments, *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "runs").exists(), "nothing is written"
