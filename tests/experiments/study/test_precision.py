"""A study trains all of its runs in one precision."""

import pytest
import torch

from experiments.errors import UsageError
from experiments.store.runs import Run, write_json
from experiments.study import plan
from experiments.study.config import load_study
from experiments.study.plan import PlannedRun, refuse_mixed_precision


def planned(tmp_path, *flags):
    study = load_study("quickstart", [f"--runs_root={tmp_path}", "--recipe.device=cpu", *flags])
    runs = [
        PlannedRun(v, Run.of(study.folder, v.name, v.run_config("key", seed)), None, study.execution.precision)  # type: ignore[arg-type]
        for seed in range(study.seeds)
        for v in study.variants
    ]
    return study, runs


def finish(p, precision):
    write_json(
        p.run.folder / "result.json", {"status": "done", "test_accuracy": 0.5, "seconds": 1.0, "precision": precision}
    )


@pytest.fixture
def bf16_machine(monkeypatch):
    def choose(precision, _device):
        return torch.float32 if precision == "fp32" else torch.bfloat16

    monkeypatch.setattr(plan, "choose_dtype", choose)


def test_runs_in_another_precision_are_refused_with_what_to_type(tmp_path, bf16_machine):
    study, runs = planned(tmp_path)
    refuse_mixed_precision(study, runs)
    for p in runs[:2]:
        finish(p, "float32")
    with pytest.raises(UsageError) as error:
        refuse_mixed_precision(study, runs)
    said = "2 runs were trained in fp32, and groups-4 would be trained in bf16 here; go on with --precision=fp32"
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_said_to_type_goes_on_with_the_same_runs(tmp_path, bf16_machine):
    _, before = planned(tmp_path)
    finish(before[0], "float32")
    study, runs = planned(tmp_path, "--precision=fp32")
    assert [p.run.folder for p in runs] == [p.run.folder for p in before]
    assert study.overrides.keys() == {"recipe.device"}
    refuse_mixed_precision(study, runs)
    assert {p.recipe.precision for p in runs} == {"fp32"}
    assert {p.variant.recipe.precision for p in runs} == {"auto"}


def test_the_file_has_the_last_word(tmp_path):
    _, runs = planned(tmp_path, "--precision=bf16", "--recipe.precision=fp32")
    assert {p.recipe.precision for p in runs} == {"fp32"}


def test_where_nothing_is_left_to_train_nothing_is_refused(tmp_path, bf16_machine):
    study, runs = planned(tmp_path)
    for p in runs:
        finish(p, "float32")
    refuse_mixed_precision(study, runs)


def test_runs_that_differ_already_are_refused_whatever_is_typed(tmp_path, bf16_machine):
    study, runs = planned(tmp_path)
    finish(runs[0], "float32")
    finish(runs[1], "bfloat16")
    with pytest.raises(UsageError, match="different precision, 1 in fp32 and 1 in bf16: remove those of one"):
        refuse_mixed_precision(study, runs)
