"""Arguments of the benchmarks of kernels that cannot work: named before anything is timed."""

import sys

import pytest

from benchmarks import kernels, learn


@pytest.mark.parametrize("benchmark", [kernels, learn], ids=["kernels", "learn"])
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--layers=16x6", "64@32/3x3/2"),
        ("--dtypes=float31", "float31"),
        ("--layouts=nhwc", "channels_last"),
        ("--partitions=3", "16 channels cannot be cut"),
    ],
)
def test_arguments_that_cannot_work_are_named_before_anything_is_timed(monkeypatch, capsys, benchmark, argument, says):
    small = {"--layers": "16@6", "--partitions": "2,log:3", "--dtypes": "float32"}
    name, value = argument.split("=")
    monkeypatch.setattr(sys, "argv", ["benchmark", *(f"{n}={v}" for n, v in (small | {name: value}).items())])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
