"""`status` prints what is done, running, failed and to do, whoever trains where."""

import json
import re
import time

import pytest

from experiments.commands import status
from experiments.errors import UsageError
from experiments.store import leases
from experiments.store.runs import write_json
from experiments.study.config import load_study
from experiments.study.plan import plan

FLAGS = ["--seeds=2", "--only=dense,log-4", "--recipe.epochs=4", "--wandb=off"]


@pytest.fixture
def study(tmp_path, tiny):
    return load_study("quickstart", [*FLAGS, f"--runs_root={tmp_path}"])


def ask(capsys, tmp_path, *arguments):
    status.print_status([*arguments, *FLAGS[:3], f"--runs_root={tmp_path}"])
    return capsys.readouterr().out


def lived(run, epochs, seconds=10.0):
    """Files of a run that has trained some epochs."""
    run.begin()
    run.write_metrics([{"epoch": k + 1, "seconds": seconds} for k in range(epochs)])


def test_a_study_that_was_never_run_is_all_to_do(study, tmp_path, capsys):
    out = ask(capsys, tmp_path, "quickstart")
    assert out.startswith("quickstart: 4 runs: 0 done, 0 running, 0 failed, 4 to do\n")
    assert out.count("  to do ") == 4
    assert not list(tmp_path.iterdir()), "asking writes nothing"


def test_every_state_is_told_with_what_is_known_of_it(study, tmp_path, capsys):
    dense, log, dense_1, log_1 = (p.run for p in plan(study))
    lived(dense, 4)
    dense.finish("done", {"test_accuracy": 0.875, "seconds": 40.0}, "cpu")
    lived(log, 1)
    lease = leases.claim(log.folder)
    lived(dense_1, 3)
    lived(log_1, 0)
    log_1.fail(MemoryError("nothing left"), 0)
    lines = ask(capsys, tmp_path, "quickstart").splitlines()
    assert lines[0] == "quickstart: 4 runs: 1 done, 1 running, 1 failed, 1 to do"
    assert [line.split()[0] for line in lines[1:]] == ["done", "running", "failed", "to"]
    assert lines[1].split(maxsplit=4)[1:] == ["dense,", "seed", "0", "accuracy 0.875, 40 s"]
    holder = leases.holder(log.folder)
    assert holder is not None and lease is not None
    said = rf"log-4, seed 0 +epoch 2 of 4, about (30|2\d) s left; by process {holder.pid} on {holder.host} since"
    assert re.search(said, lines[2])  # a slow machine has begun on the 30 s
    assert "MemoryError: nothing left; the next start tries it again" in lines[3]
    assert "dense, seed 1" in lines[4]
    assert "from epoch 4 of 4" in lines[4]
    lease.release()
    assert "2 to do" in ask(capsys, tmp_path, "quickstart")
    result = json.loads(ask(capsys, tmp_path, "quickstart", "--json"))[0]
    assert result["counts"] == {"done": 1, "running": 0, "failed": 1, "to do": 2}
    assert [run["state"] for run in result["runs"]] == ["done", "to do", "to do", "failed"]


def test_a_diverged_run_is_failed_for_good(study, tmp_path, capsys):
    run = plan(study)[0].run
    lived(run, 1)
    run.finish("diverged", {"reason": "the loss became nan", "epoch": 1}, "cpu")
    (line,) = (x for x in ask(capsys, tmp_path, "quickstart").splitlines() if x.startswith("  failed"))
    assert line.endswith("diverged: the loss became nan")


def test_the_first_epoch_of_a_run_is_judged_by_others_of_its_variant(study, tmp_path, capsys):
    dense, _, dense_1, _ = (p.run for p in plan(study))
    lived(dense, 4)
    dense.finish("done", {"test_accuracy": 0.5, "seconds": 80.0}, "cpu")
    lived(dense_1, 0)
    assert leases.claim(dense_1.folder) is not None
    assert re.search(r"epoch 1 of 4, about (80|7\d) s left", ask(capsys, tmp_path, "quickstart"))


def test_of_a_holder_elsewhere_the_silence_is_told(study, tmp_path, capsys, monkeypatch):
    run = plan(study)[0].run
    lived(run, 1)
    assert leases.claim(run.folder) is not None
    monkeypatch.setattr(leases, "machine", lambda: "elsewhere")
    assert "no sign of life" not in ask(capsys, tmp_path, "quickstart")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 600)
    out = ask(capsys, tmp_path, "quickstart")
    assert "1 running" in out
    assert "no sign of life for 10 min: perhaps dead" in out


def test_a_clock_set_back_gives_no_negative_times(study, tmp_path, capsys, monkeypatch):
    run = plan(study)[0].run
    lived(run, 2)
    assert leases.claim(run.folder) is not None
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 1e6)
    (result,) = json.loads(ask(capsys, tmp_path, "quickstart", "--json"))
    assert result["runs"][0]["running_seconds"] == 0
    assert result["runs"][0]["seconds_left"] == 20


def test_runs_of_other_configurations_and_damaged_folders_are_counted_apart(study, tmp_path, capsys):
    other = load_study("quickstart", [*FLAGS, "--recipe.lr=0.01", f"--runs_root={tmp_path}"])
    lived(plan(other)[0].run, 1)
    (tmp_path / "quickstart" / "dense-seed9-damaged").mkdir()
    (tmp_path / "quickstart" / "dense-seed9-damaged" / "config.json").write_text("{")
    write_json(tmp_path / "quickstart" / "dense-seed8-list" / "config.json", [1])
    out = ask(capsys, tmp_path, "quickstart")
    assert out.startswith("quickstart: 4 runs: 0 done, 0 running, 0 failed, 4 to do; 3 of other configurations")


@pytest.mark.parametrize("content", ["[]", "{}", "null", "{", '{"status": "done"}', '{"status": "diverged"}'])
def test_a_damaged_result_is_named_and_the_run_is_to_do(study, tmp_path, capsys, content):
    run = plan(study)[0].run
    lived(run, 1)
    (run.folder / "result.json").write_text(content)
    status.print_status(["quickstart", *FLAGS[:3], f"--runs_root={tmp_path}"])
    said = capsys.readouterr()
    assert said.out.startswith("quickstart: 4 runs: 0 done, 0 running, 0 failed, 4 to do")
    assert f"warning: {run.folder / 'result.json'} is damaged and counts as missing" in said.err


def test_a_run_that_has_all_its_epochs_is_to_be_tested(study, tmp_path, capsys):
    lived(plan(study)[0].run, 4)
    assert re.search(r"to do +\S+, seed 0 +trained, not tested$", ask(capsys, tmp_path, "quickstart"), re.MULTILINE)


def test_without_a_name_every_study_has_a_line_and_one_that_cannot_be_read_hides_no_other(
    tmp_path, capsys, monkeypatch
):
    for name, key in (("first", "question"), ("second", "kuestion"), ("third", "question")):
        (tmp_path / f"{name}.yaml").write_text(f"{key}: what\nmodel.name: small\n")
    monkeypatch.setattr("experiments.study.catalogue.CONFIGS", tmp_path)
    status.print_status([f"--runs_root={tmp_path}/runs"])
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["first", "third"]
    assert "second.yaml" in said.err
    with pytest.raises(UsageError, match="nonsense"):
        status.print_status(["--nonsense=1"])


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (99, "99 s"), (3600, "60 min"), (7980, "2 h 13 min")])
def test_durations_are_said_as_people_say_them(seconds, words):
    assert status.duration(seconds) == words


def test_a_run_in_training_with_overridden_keys_is_shown_with_them(study, tmp_path, capsys):
    other = load_study("quickstart", [*FLAGS, f"--runs_root={tmp_path}", "--recipe.epochs=9", "--data.colour=grey"])
    run = plan(other)[0].run
    lived(run, 2)
    lease = leases.claim(run.folder)
    assert lease is not None
    lines = ask(capsys, tmp_path, "quickstart").splitlines()
    assert lines[0].endswith("0 done, 0 running, 0 failed, 4 to do; 1 of other configurations in the folder")
    assert lines[-1].startswith("  running  dense, seed 0")
    assert "epoch 3 of 9" in lines[-1]
    assert "with --data.colour=grey --recipe.epochs=9" in lines[-1]
