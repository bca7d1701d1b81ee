import os
import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.errors import UsageError
from experiments.execution.study_runs import train_all
from experiments.pipeline import run_study
from experiments.report import summary as report
from experiments.store import leases
from experiments.study.config import load_study
from experiments.study.plan import PlannedRun, plan

TOLERANCE = 1e-4  # of every metric after 20 steps in fp32, on the CPU


pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = [
    "--recipe.epochs=2",
    "--recipe.batch_size=8",
    "--recipe.lr=0.02",
    "--data.image_size=16",
    "--data.crop_size=16",
]
SMALL += ["--measures.images=8", "--measures.permutations=99", "--recipe.device=cpu", "--wandb=off", "--model.width=8"]
SMALL += ["--measures.draws=0", "--measures.lesion_images=0", "--recipe.precision=fp32"]


def small_study(folder, *flags):
    return load_study("quickstart", [*SMALL, f"--runs_root={folder}", *flags])


@pytest.mark.usefixtures("tiny")
def test_a_whole_study_at_once_gives_the_tables_of_the_study_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.report.summary.draw_figures", lambda _folder: [])
    monkeypatch.setattr("experiments.measure.first_layer.CROPS", 2)
    monkeypatch.setattr("experiments.pipeline._speed", lambda *_: pd.DataFrame())
    flags = ["--only=dense,log-4", "--seeds=2"]
    studies = [small_study(tmp_path / at, *flags, f"--seeds_at_once={at}") for at in ("1", "3")]
    assert run_study(studies[0]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("experiments.execution.planned_run.train_run", lambda *_: pytest.fail("trained alone"))
        assert run_study(studies[1]) == 0
    out = capsys.readouterr().out
    trained = [line for line in out.splitlines() if re.match(r"\[\d+/\d+\] ", line)]
    assert len(trained) == 4
    assert any("dense, seed 0: accuracy" in line and line.endswith("(together with seed 1)") for line in trained)
    assert any("log-4, seed 1: accuracy" in line and line.endswith("(together with seed 0)") for line in trained)
    known, measured = (report.read_measures(study.folder) for study in studies)
    names = [name for name in known.columns if name != "value"]
    pd.testing.assert_frame_equal(known[names], measured[names])
    same = ~known["measure"].str.contains("second|time")
    assert np.allclose(known["value"][same], measured["value"][same], rtol=1e-3, atol=1e-3)
    first, second = plan(studies[0]), plan(studies[1])
    for p, q in zip(first, second, strict=True):
        assert p.run.folder.name == q.run.folder.name, "no part of what a run is"
        assert q.run.result.keys() ^ p.run.result.keys() == {"seeds_at_once"}
        assert (q.run.result["seeds_at_once"], q.run.result["kernels"]) == (2, "by rule")
        assert abs(p.run.result["test_loss"] - q.run.result["test_loss"]) < TOLERANCE
        assert not list(q.run.folder.glob("lease-*"))
    assert "seeds_at_once" not in studies[1].overrides


@pytest.mark.usefixtures("tiny")
def test_a_seed_in_other_hands_is_left_to_them(tmp_path, capsys, monkeypatch):
    study = small_study(tmp_path, "--only=dense", "--seeds=3", "--seeds_at_once=3")
    planned = plan(study)
    other = leases.claim(planned[1].run.folder)
    assert other is not None

    def the_other_ends(_seconds):
        planned[1].run.finish("done", {"test_accuracy": 0.5, "seconds": 1.0}, "elsewhere")
        other.release(remove=True)

    monkeypatch.setattr("experiments.store.work_sharing.sleep", the_other_ends)
    assert train_all(study, planned) == 0
    ended = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    assert "seed 0" in ended[0] and ended[0].endswith("(together with seed 2)")
    assert "seed 2" in ended[1] and ended[1].endswith("(together with seed 0)")
    assert ended[2].endswith("accuracy 0.500, 1 s (by another process)")


@pytest.mark.usefixtures("tiny")
def test_a_seed_that_diverges_beside_others_is_recorded_as_diverged(tmp_path, capsys, monkeypatch):
    study = small_study(tmp_path, "--only=dense", "--seeds=3", "--seeds_at_once=3")
    fresh_model = PlannedRun.fresh_model

    def broken(self):
        model = fresh_model(self)
        if self.run.seed == 2:
            torch.nn.init.constant_(model.get_parameter("classify.weight"), float("inf"))
        return model

    planned = plan(study)
    monkeypatch.setattr(PlannedRun, "fresh_model", broken)
    assert train_all(study, planned) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "seed 0: accuracy" in lines[0] and lines[0].endswith("(together with seeds 1, 2)")
    assert "seed 2: diverged: the loss became" in lines[2]
    assert [p.run.result["status"] for p in planned] == ["done", "done", "diverged"]
    assert [p.run.result.get("seeds_at_once") for p in planned] == [2, 2, None], "as many as came to the end together"


@pytest.mark.usefixtures("tiny")
def test_dropout_is_refused_before_anything_is_trained_and_goes_alone_by_itself(tmp_path):
    flags = ["--model.name=alexnet", "--data.image_size=67", "--data.crop_size=67", "--model.norm=none"]
    flags = [flag for flag in SMALL if "size=16" not in flag and "width" not in flag] + flags
    flags += ["--only=dense", f"--runs_root={tmp_path}"]
    with pytest.raises(UsageError, match=r"seeds_at_once=3, variant dense: .*drop6 \(Dropout\).*p=0.5") as error:
        plan(load_study("quickstart", [*flags, "--seeds_at_once=3"]))
    assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)
    assert len(plan(load_study("quickstart", [*flags, "--seeds_at_once=auto"]))) == 3


@pytest.mark.parametrize("value", ["0", "-2", "many", "true", "1.5"])
def test_a_number_of_seeds_that_cannot_be_is_refused(value):
    with pytest.raises(UsageError, match="seeds_at_once"):
        load_study("quickstart", [f"--seeds_at_once={value}"])
