"""Processes that train each run together: refusals before they start, and one that dies."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import launch
from experiments.commands import trained
from experiments.errors import UsageError
from fault_children import fork, wait

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus=0"], "gpus=0: must be at least 1"),
        (["--gpus=3", "--recipe.batch_size=2", "--recipe.device=cpu"], "3 processes need an image each, .*batch has 2"),
        (["--gpus=2", "--recipe.device=cpu", "--seeds_at_once=2"], "gpus=2 cannot be combined with seeds_at_once=2"),
        (["--gpus=2", "--recipe.device=mps"], "recipe.device=mps cannot be combined with 2 processes"),
        (["--gpus=2", "--recipe.device=cpu", "--compile=always"], "gpus=2 cannot be combined with compile=always"),
        (["--gpus=2", "--on=ray"], "gpus=2 cannot be combined with on=ray"),
    ],
)  # fmt: skip
def test_what_cannot_work_with_several_processes_is_one_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: pytest.fail("started"))
    with pytest.raises(UsageError, match=words) as error:
        trained.run("quickstart", [*flags, f"--runs_root={tmp_path}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("present", "advice"), [(0, "0 CUDA devices; use --"), (1, "1 CUDA device; use gpus=1, or --")]
)
def test_more_gpus_than_there_are_is_one_line_with_both_numbers_and_the_way_out(monkeypatch, present, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(UsageError, match=rf"gpus=4: this machine has {advice}recipe.device=cpu") as error:
        launch.check_devices(["auto", "cpu"], 4)
    assert "\n" not in str(error.value)
    launch.check_devices(["cpu"], 4)


@pytest.fixture
def pictures(tmp_path):
    """A folder of images: two classes of noise."""
    for split, images in (("train", 40), ("val", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                noise = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_a_rank_that_dies_under_the_launcher_is_one_line_and_the_same_command_goes_on(tmp_path, pictures, capfd):
    flags = [f"--dataset=folder:{pictures}", f"--data_root={tmp_path}/data", f"--runs_root={tmp_path}/runs"]
    flags += ["--recipe.device=cpu", "--recipe.batch_size=4", "--model.width=4", "--wandb=off", "--seeds=1"]
    flags += ["--data.image_size=12", "--data.crop_size=12", "--only=dense", "--recipe.epochs=500", "--gpus=2"]
    job = fork(trained.run, "quickstart", flags)
    runs = tmp_path / "runs" / "quickstart"
    while not any(path.stat().st_size for path in runs.glob("dense-*/metrics.jsonl")):
        assert os.waitpid(job, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    children = Path(f"/proc/{job}/task/{job}/children").read_text(encoding="utf-8").split()
    ranks = {int(pid): Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0") for pid in children}
    (victim,) = [pid for pid, environment in ranks.items() if "RANK=1" in environment]
    os.kill(victim, signal.SIGKILL)
    assert wait(job) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert err.count("error:") == 1
    assert "rank 1 of 2 was killed by signal 9 (SIGKILL); the others were stopped; dense, seed 0: " in err
    (folder,) = runs.iterdir()
    assert '"released": true' in next(folder.glob("lease-*")).read_text()
    assert not (folder / "failure.json").exists()
