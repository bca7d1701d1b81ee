import json
import multiprocessing

import pytest
import torch

from experiments.store.runs import Run, config_hash, short_commit, write_atomic


def a_run(folder, **changes):
    return Run.of(folder, "dense", {"seed": 0, "data": "abc", "recipe": {"lr": 0.1}, **changes})


def test_another_configuration_is_another_run(tmp_path):
    assert a_run(tmp_path).folder == a_run(tmp_path).folder
    assert a_run(tmp_path).folder != a_run(tmp_path, recipe={"lr": 0.2}).folder
    assert a_run(tmp_path).folder != a_run(tmp_path, seed=1).folder
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})


def test_a_variants_name_is_safe_as_a_folder(tmp_path):
    run = Run.of(tmp_path, "model.groups=log:4/../x y", {"seed": 0})
    assert run.folder.parent == tmp_path


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as error:
        write_atomic(path, half)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_checkpoints_hold_tensors_and_plain_values_only(tmp_path, capsys):
    run = a_run(tmp_path)
    assert run.load_checkpoint() is None
    run.save_checkpoint({"model": {"w": torch.ones(2)}, "history": [{"loss": 0.5}]})
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert torch.equal(loaded["model"]["w"], torch.ones(2))
    torch.save({"model": print}, run.folder / "checkpoint.pt")
    assert run.load_checkpoint() is None
    assert "more than tensors and plain values" in capsys.readouterr().err


def test_a_result_carries_its_provenance(tmp_path):
    run = a_run(tmp_path)
    assert run.result is None
    run.finish("done", {"test_accuracy": 0.9, "seconds": 1.0}, "a device")
    result = json.loads((run.folder / "result.json").read_text())
    assert result == run.result
    for key in ("commit", "date", "device", "torch", "config_hash", "data_hash", "python", "seed"):
        assert key in result


def _try_lock(run, queue):
    with run.lock() as held:
        queue.put(held is not None)


def test_two_processes_do_not_train_the_same_run(tmp_path):
    run = a_run(tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with run.lock() as held:
        assert held
        other = context.Process(target=_try_lock, args=(run, queue))
        other.start()
        assert queue.get(timeout=20) is False
        other.join()
    with run.lock() as held:
        assert held


@pytest.mark.parametrize(
    ("commit", "short"),
    [
        ("0123456789abcdef", "0123456789"),
        ("0123456789abcdef+changes", "0123456789 with uncommitted changes"),
        ("0123456789abcdef with uncommitted changes", "0123456789 with uncommitted changes"),
        ("unknown", "unknown"),
    ],
)
def test_a_commit_is_shown_short_and_says_so_if_files_differed_from_it(commit, short):
    """Older results have ``+changes``."""
    assert short_commit(commit) == short
