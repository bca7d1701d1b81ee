"""Arguments of the benchmarks of kernels that cannot work: named before anything is timed."""

import sys

import pytest

from benchmarks import blocks, by_hand, kernels, learn, steps, training


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


@pytest.mark.parametrize(
    ("benchmark", "argument", "says"),
    [
        (by_hand, "--dtypes=int8", "--dtypes: int8: write float32, bfloat16, float16, float64"),
        (by_hand, "--batches=8,x", "--batches: x: write a whole number of at least 1"),
        (by_hand, "--repeats=1", "--repeats: 1: write a whole number of at least 2"),
        (learn, "--batches=0", "--batches: 0: write a whole number of at least 1"),
        (learn, "--dtypes=int7", "--dtypes: int7: write float32"),
        (kernels, "--batch=-1", "--batch: -1: write a whole number of at least 1"),
        (blocks, "--dtypes=", "--dtypes: : write float32"),
        (blocks, "--repeats=0", "--repeats: 0: write a whole number of at least 2"),
        (steps, "--batch=0", "--batch: 0: write a whole number of at least 1"),
        (training, "--seeds=1,none", "--seeds: none: write a whole number of at least 1"),
        (training, "--blocks=1.5", "--blocks: 1.5: write a whole number of at least 1"),
    ],
)
def test_numbers_and_dtypes_that_cannot_work_are_named(monkeypatch, capsys, benchmark, argument, says):
    monkeypatch.setattr(sys, "argv", ["benchmark", argument])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
