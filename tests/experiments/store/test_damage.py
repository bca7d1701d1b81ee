"""Files that were cut, changed or made by strangers: detected, reported in a line, and nothing in them executed."""

import os
from pathlib import Path

import pytest
import torch

from experiments.errors import UsageError
from experiments.store import checkpoint_file
from experiments.store.runs import Run
from experiments.study.config import load_study
from fault_children import a_run, assert_same, go_on, train

pytestmark = pytest.mark.usefixtures("one_thread")


def stopped(run, after, monkeypatch):
    """Train in this process until the checkpoint of an epoch is written, and stop there."""
    save = Run.save_checkpoint

    def save_and_stop(self, state):
        save(self, state)
        if len(state["history"]) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(run)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_that_is_said_in_a_line(
    tmp_path, reference, monkeypatch, capfd, damage
):
    run = a_run(tmp_path)
    stopped(run, 3, monkeypatch)
    damage(run.folder / "checkpoint.pt")
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert len(checkpoint["history"]) == 2
    err = capfd.readouterr().err
    if damage is not Path.unlink:  # as a kill between two renames leaves it: nothing is damaged
        assert err.count("\n") == 1
        assert "checkpoint.pt is damaged" in err
        assert "checkpoint-previous.pt is used" in err
    go_on(run)
    assert_same(run, reference)


@pytest.mark.usefixtures("save_always")
def test_with_both_checkpoints_damaged_it_starts_again(tmp_path, reference, monkeypatch, capsys):
    run = a_run(tmp_path)
    stopped(run, 3, monkeypatch)
    flip_a_bit(run.folder / "checkpoint.pt")
    truncate(run.folder / "checkpoint-previous.pt")
    assert run.load_checkpoint() is None
    assert "there is no other" in capsys.readouterr().err
    go_on(run)
    assert_same(run, reference)


def test_every_flipped_bit_and_every_cut_of_a_checkpoint_is_found(tmp_path):
    path = tmp_path / "checkpoint.pt"
    content = bytes(checkpoint_file.to_bytes({"w": torch.arange(8.0), "history": [{"loss": 0.5}]}))
    for bit in range(0, 8 * (len(content) - checkpoint_file.CHECKSUM_LENGTH), 101):
        path.write_bytes(content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :])
        with pytest.raises(checkpoint_file.DamagedError, match="checksum"):
            checkpoint_file.load(path)
    for length in range(0, len(content) - checkpoint_file.CHECKSUM_LENGTH, 37):
        path.write_bytes(content[:length])
        with pytest.raises(checkpoint_file.DamagedError):
            checkpoint_file.load(path)
    path.write_bytes(content)
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(8.0)), "any other program reads it too"


def test_a_checkpoint_from_before_there_were_checksums_is_taken_as_it_is(tmp_path):
    torch.save({"history": [1, 2]}, tmp_path / "checkpoint.pt")
    assert checkpoint_file.load(tmp_path / "checkpoint.pt") == {"history": [1, 2]}


@pytest.mark.usefixtures("save_always")
def test_half_a_line_of_metrics_is_mended_from_the_checkpoint(tmp_path, reference, monkeypatch, capsys):
    run = a_run(tmp_path)
    stopped(run, 3, monkeypatch)
    path = run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [epoch["epoch"] for epoch in run.metrics()] == [1, 2, 3]
    assert "damaged line" in capsys.readouterr().err
    go_on(run)
    assert_same(run, reference)


def test_a_result_that_is_damaged_is_made_again_from_the_checkpoint(tmp_path, reference, capfd):
    run = a_run(tmp_path)
    go_on(run)
    truncate(run.folder / "result.json")
    assert run.result is None
    go_on(run)
    assert "result.json is damaged" in capfd.readouterr().err
    assert_same(run, reference)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_from_a_stranger_executes_nothing(tmp_path, capsys):
    run = a_run(tmp_path)
    run.folder.mkdir(parents=True)
    torch.save({"model": {}, "history": [], "trap": Trap(tmp_path / "sprung")}, run.folder / "checkpoint.pt")
    assert run.load_checkpoint() is None
    assert "more than tensors and plain values" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    torch.load(run.folder / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap works"


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_a_configuration_from_a_stranger_executes_nothing(tmp_path, monkeypatch, tag):
    command = f"{tag} ['touch {tmp_path}/sprung']"
    (tmp_path / "trap.yaml").write_text(f"question: {command}\nmodel.name: small\n")
    monkeypatch.setattr("experiments.study.catalogue.CONFIGS", tmp_path)
    for name, flags in (("trap", []), ("fine", [f"--model.width={command}"])):
        (tmp_path / "fine.yaml").write_text("question: none\nmodel.name: small\n")
        with pytest.raises(UsageError) as error:
            load_study(name, flags)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()
