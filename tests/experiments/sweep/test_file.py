"""A sweep file is checked whole, by the words that wandb will read, before anything starts."""

import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.errors import UsageError
from experiments.study.config import load_study
from experiments.sweep import command as sweep
from experiments.sweep import file as sweep_file
from experiments.sweep.engine import plain, suggest
from experiments.sweep.file import METRICS, import_engine, read_sweep, sweep_names, sweep_path

COMMAND = '["${env}", "${interpreter}", -m, "${program}", run, quickstart, --only=dense, --seeds=1, "${args}"]'
GOOD = f"""\
program: experiments
command: {COMMAND}
method: random
metric: {{name: test_accuracy, goal: maximize}}
parameters:
  recipe.lr: {{distribution: log_uniform_values, min: 0.01, max: 1.0}}
"""


def written(tmp_path, text):
    folder = tmp_path / "sweeps"
    folder.mkdir(exist_ok=True)
    path = folder / "example.yaml"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("name", sweep_names())
def test_every_shipped_sweep_is_wandbs_own_schema_and_makes_one_run_of_its_study(name):
    sweep = read_sweep(sweep_path(name))
    content = yaml.safe_load(sweep.path.read_text())
    content.pop("run_cap", None)  # the server's, which came after the engine's schema
    assert not import_engine().schema_violations_from_proposed_config(content)
    values = suggest(sweep, [])
    assert values is not None
    study = load_study(sweep.study, sweep.of_one_run(values, []))
    assert len(study.variants) * study.seeds == 1
    head = sweep.path.read_text().split("\nname:")[0]
    for part in ("# Question:", "# Command:  make sweep NAME=" + name, "# Time:", "# Result:"):
        assert part in head


def test_the_shipped_sweeps_are_those_that_are_promised():
    methods = {name: read_sweep(sweep_path(name)).method for name in sweep_names()}
    assert methods["alexnet-lr-wd"] == methods["photos-bayes"] == "bayes"
    assert methods["lognet-groups"] == methods["width-groups"] == "grid"
    assert "early_terminate" in read_sweep(sweep_path("photos-bayes")).content


@pytest.fixture
def wandb_launch(monkeypatch):
    """The package around the agent's functions, without what it imports by itself, which takes seconds."""
    import wandb

    package = types.ModuleType("wandb.sdk.launch")
    package.__path__ = [str(Path(wandb.__file__).parent / "sdk" / "launch")]
    monkeypatch.setitem(sys.modules, package.__name__, package)


@pytest.mark.usefixtures("wandb_launch")
def test_flags_are_those_that_a_wandb_agent_passes(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = read_sweep(written(tmp_path, GOOD))
    values = {"recipe.lr": 1e-05, "model.groups": None, "data.flip": False, "recipe.epochs": 3, "dataset": "photos"}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})["args"]
    assert "--model.groups=None" in theirs
    ours = sweep.of_one_run(values, ["--recipe.lr=2"])
    assert ours == ["--only=dense", "--seeds=1", "--recipe.lr=2", *sweep_file.from_agent(theirs)]
    assert "--model.groups=null" in ours
    (variant,) = load_study("quickstart", [f for f in ours if "model" not in f]).variants
    assert (variant.recipe.lr, variant.recipe.epochs, variant.views.flip) == (1e-05, 3, False)


def test_none_from_an_agent_is_null():
    (variant,) = load_study("widen", sweep_file.from_agent(["--model.groups=None", "--model.replicas=4"])).variants
    assert variant.model["groups"] is None


def test_values_of_numpy_become_plain_ones():
    values = [np.float64(0.5), np.int64(3), np.array([1, 2]), [np.float32(2)], "log:4", True, None]
    assert [plain(v) for v in values] == [0.5, 3, [1, 2], [2.0], "log:4", True, None]
    assert [type(plain(v)) for v in values] == [float, int, list, list, str, bool, type(None)]


def test_every_metric_that_is_offered_is_reported_by_a_run(tmp_path, monkeypatch):
    from experiments.execution.study_runs import train_all
    from experiments.study.plan import plan
    from experiments.tracking import listening
    from tiny_images import tiny_dataset

    monkeypatch.setattr("experiments.data.datasets.load", lambda _spec, size, *_rest: tiny_dataset(size))
    flags = ["--only=dense", "--seeds=1", "--recipe.epochs=1", "--recipe.device=cpu", "--wandb=off"]
    study = load_study("quickstart", [*flags, f"--runs_root={tmp_path}"])
    heard = []
    with listening(heard.append):
        train_all(study, plan(study))
    assert set(METRICS) <= heard[0].keys()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("method: random", "methd: random", ["unknown key methd", "did you mean method?"]),
        ("method: random", "method: baies", ["method=baies", "did you mean bayes?"]),
        ("method: random\n", "", ["method is missing"]),
        ("name: test_accuracy", "name: test_acuracy", ["metric.name=test_acuracy", "did you mean test_accuracy?"]),
        (", goal: maximize", "", ["metric.goal is missing", "write goal: maximize"]),
        ("goal: maximize", "goal: max", ["metric.goal=max", "maximize"]),
        ("goal: maximize", "goal: maximize, target: high", ["metric.target=high"]),
        ("goal: maximize", "goal: maximize, impute: mean", ["metric.impute=mean", "worst"]),
        ("recipe.lr:", "recipe.lrr:", ["parameters.recipe.lrr", "did you mean recipe.lr?"]),
        ("recipe.lr:", "recipe.epochs:", ["parameters.recipe.epochs", "whole number"]),
        ("min: 0.01", "min: 2.0", ["parameters.recipe.lr", "2.0", "not less than max 1.0"]),
        ("min: 0.01", "min: 1e-2", ["parameters.recipe.lr.min", "1e-2 is a text to wandb", "write 0.01"]),
        ("min: 0.01", "min: 1e-7", ["write 1.0e-07"]),
        (
            "{distribution: log_uniform_values, min: 0.01, max: 1.0}",
            "{values: [1:30]}",
            ["1:30 is 90 to wandb", 'write "1:30"'],
        ),
        ("{distribution: log_uniform_values, min: 0.01, max: 1.0}", "{min: 0.01}", ["parameters.recipe.lr", "values"]),
        ("log_uniform_values", "log_uniform", ["exponents of e", "log_uniform_values"]),
        ("{distribution: log_uniform_values, min: 0.01, max: 1.0}", "{values: [-1]}", ["recipe.lr=-1", "above 0"]),
        ("recipe.lr: {distribution", "recipe: {parameters: {lr: {value: 1}}} #", ["nested", "write recipe.lr"]),
        ("{distribution: log_uniform_values, min: 0.01, max: 1.0}", "{values: [1], probabilities: [2]}", ["sum 1"]),
        ("method: random", "method: grid", ["parameters.recipe.lr", "a grid needs values"]),
        ("method: random", "method: random\nrun_cap: 0", ["run_cap=0"]),
        ("method: random", "method: random\nearly_terminate: {type: median}", ["early_terminate.type=median"]),
        ("method: random", "method: random\nearly_terminate: {type: hyperband}", ["early_terminate needs min_iter"]),
        ("method: random", "method: random\nearly_terminate: {type: hyperband, min_iter: 0}", ["min_iter=0"]),
        ("method: random", "method: random\nearly_terminate: {type: hyperband, max_iter: 9}", ["early_terminate.s"]),
        (
            "method: random",
            "method: random\nearly_terminate: {type: hyperband, min_itr: 1}",
            ["early_terminate.min_iter"],
        ),
        ("method: random", "method: random\nearly_terminate: {type: hyperband, min_iter: 1, eta: 1}", ["eta=1"]),
        ("method: random", "method: random\nearly_terminate: 3", ["early_terminate.type=3"]),
        (' "${args}"', "", ["command", "${args}"]),
        ('"${args}"', '"${args_json}"', ["command", "not ${args_json}"]),
        ("run, quickstart", "run", ["command", "STUDY"]),
        ("run, quickstart", "run, quikstart", ["command", "did you mean quickstart?"]),
        ("program: experiments\n", "", ["program is missing"]),
        ("--seeds=1", "--seeds=2", ["one run", "2 seeds", "--seeds=1"]),
        ("--only=dense, ", "", ["4 variants", "--only=VARIANT"]),
        ("parameters:", "parameters: []\nparameter:", ["unknown key parameter"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_work_is_one_line_with_file_and_key(tmp_path, old, new, words):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError) as error:
        sweep.run_sweep(str(path), ["--local", f"--runs_root={tmp_path}/runs"])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert "sweeps/example.yaml" in str(error.value) or "one run" in str(error.value)
    assert not (tmp_path / "runs").exists(), "nothing is begun"


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("photo-bayes", [], ["NAME=photo-bayes", "did you mean photos-bayes?", "width-groups"]),
        ("photos-bayes", ["--runs=none"], ["--runs=none", "whole number"]),
        ("photos-bayes", ["--workers=0"], ["--workers=0"]),
        ("photos-bayes", ["--online", "--local"], ["only one"]),
        ("photos-bayes", ["--recipe.lrr=1"], ["recipe.lrr", "did you mean recipe.lr?"]),
        ("photos-bayes", ["--quick"], ["unknown flag --quick", "--workers=N"]),
        ("photos-bayes", ["quick"], ["quick is no flag"]),
        ("photos-bayes", ["--gpus=2"], ["gpus=2", "--workers"]),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(tmp_path, name, flags, words):
    with pytest.raises(UsageError) as error:
        sweep.run_sweep(name, [*flags, f"--runs_root={tmp_path}/runs"])
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_without_the_engine_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sweeps", None)
    with pytest.raises(UsageError, match=r"pip install sweeps==0\.2\.0"):
        import_engine()


@pytest.mark.parametrize(
    ("metric", "end"), [("val_acc", "reports that; there are: test_acc"), ("test_acuracy", "test_accuracy? There are:")]
)
def test_a_metric_that_no_run_reports_is_one_sentence(tmp_path, metric, end):
    text = sweep_path("photos-bayes").read_text().replace("name: test_accuracy", f"name: {metric}")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_sweep(tmp_path / "mine.yaml")
    assert end in str(error.value)
    assert " There" not in str(error.value).replace("? There", "")
