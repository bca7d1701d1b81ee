"""The README's first command as it is, in either precision that a machine may choose."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quickstart_runs_to_its_end_and_its_networks_learn(tmp_path, precision):
    """With one seed; every network classifies eleven photographs far better than by chance, 1/11."""
    command = [sys.executable, "-m", "experiments", "run", "quickstart", "--seeds=1", "--wandb=off"]
    command += [f"--recipe.precision={precision}", f"--runs_root={tmp_path}", "--recipe.device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    completed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    runs = pd.read_csv(tmp_path / "quickstart/tables/runs.csv")
    assert set(runs["precision"]) == {{"fp32": "float32", "bf16": "bfloat16"}[precision]}
    assert list(runs["variant"]) == ["dense", "groups-2", "groups-4", "log-4"]
    assert (runs["test_accuracy"] > 0.75).all()
    assert (tmp_path / "quickstart/figures/filters.png").is_file()
