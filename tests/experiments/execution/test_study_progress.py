"""Estimates of the time that a study still takes, against hand-counted ones."""

from types import SimpleNamespace

import pytest

from experiments.execution.study_progress import StudyProgressLines
from experiments.store import leases
from experiments.store.runs import Run
from experiments.training import progress_lines
from experiments.training.progress_lines import ProgressLines, in_words


def planned_runs(folder, variants=("a", "b"), seeds=2, epochs=10):
    recipe = SimpleNamespace(epochs=epochs)
    return [
        SimpleNamespace(
            variant=SimpleNamespace(name=name, recipe=recipe),
            run=Run.of(folder, name, {"seed": seed, "data": "d", "recipe": {"epochs": epochs}}),
        )
        for seed in range(seeds)
        for name in variants
    ]


def test_what_is_left_is_the_rest_of_the_run_and_the_runs_that_wait(tmp_path):
    """Two variants, two seeds, ten epochs: 3 epochs of 6 s, and three runs of 60 s each."""
    planned = planned_runs(tmp_path)
    lines = StudyProgressLines(planned)
    left_s, words = lines.estimate(planned[0].run, 1, 3, 6.0)
    assert left_s == 3 * 6 + 3 * 60
    assert words == "about 18 s of this run and 3 min of the study left (4 runs)"
    assert lines.bar_note == "study 3 min"


def test_a_variant_counts_with_its_own_pace_once_it_is_known_and_runs_that_have_ended_do_not_count(tmp_path):
    planned = planned_runs(tmp_path)
    planned[1].run.finish("done", {"test_accuracy": 0.5, "seconds": 200.0}, "here")  # b: 20 s an epoch
    lines = StudyProgressLines(planned)
    assert lines.estimate(planned[0].run, 1, 1, 6.0)[0] == 6 + 60 + 200
    planned[0].run.fail(ValueError("its disk is gone"), 0)
    lines.run_ended(planned[0].run)
    assert lines.estimate(planned[2].run, 1, 1, 6.0)[0] == 6 + 200


def test_seeds_in_lockstep_are_no_runs_that_wait(tmp_path):
    planned = planned_runs(tmp_path, variants=("a",), seeds=4)
    assert StudyProgressLines(planned).estimate(planned[0].run, 3, 2, 5.0)[0] == 3 * 2 * 5 + 1 * 10 * 5


def test_processes_that_divide_a_study_share_the_time(tmp_path, monkeypatch):
    planned = planned_runs(tmp_path)
    own = leases.claim(planned[0].run.folder)
    other = SimpleNamespace(machine="another", pid=1)
    real = leases.holder
    monkeypatch.setattr(leases, "holder", lambda f: other if f == planned[1].run.folder else real(f))
    assert StudyProgressLines(planned).estimate(planned[0].run, 1, 0, 6.0)[0] == 3 * 60 / 2
    own.release()


@pytest.mark.parametrize("terminal", [False, True])
def test_there_is_a_line_after_the_first_epoch_and_then_one_each_half_minute_in_a_pipe(
    tmp_path, monkeypatch, capsys, terminal
):
    """Epochs of 12 s; after 0, 36 and 72 s."""
    monkeypatch.setattr(progress_lines.sys.stderr, "isatty", lambda: terminal, raising=False)
    lines, run = ProgressLines(), Run.of(tmp_path, "a", {"seed": 0})
    for epoch in range(8):
        monkeypatch.setattr(progress_lines.time, "monotonic", lambda epoch=epoch: 1000.0 + 12 * epoch)
        lines.epoch_ended(run, f"a epoch {epoch + 1}/12", 0.5, 1, 11 - epoch, 12.0)
    printed = capsys.readouterr().out.splitlines()
    expected = [
        "a epoch 1/12: loss 0.500, about 2 min of this run left",
        "a epoch 4/12: loss 0.500, about 2 min of this run left",
        "a epoch 7/12: loss 0.500, about 60 s of this run left",
    ]
    assert printed == ([] if terminal else expected)


def test_the_last_half_minute_is_not_worth_a_line(tmp_path, capsys):
    ProgressLines().epoch_ended(Run.of(tmp_path, "a", {"seed": 0}), "a epoch 1/2", 0.5, 1, 1, 29.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds, words):
    assert in_words(seconds) == words
