"""The commands as a user types them: right ones and wrong ones."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from experiments import __main__ as command_line
from experiments.name_hints import MAX_NAMES_LISTED, hint
from experiments.store.runs import write_json
from experiments.study.catalogue import CONFIGS
from experiments.study.invocation import typed


def run(capsys, monkeypatch, *arguments):
    """Exit code, standard output and standard error of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code = command_line.entry()
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_a_command_it_shows_its_usage(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch)
    assert code == 0
    assert "run NAME" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["trian", "there are: list, run, "]),
        (["run"], ["name is missing", "list"]),
        (["run", "quikstart"], ["NAME=quikstart", "did you mean quickstart", "alexnet-groups"]),
        (["run", "quickstart", "--recipe.lrr=1"], ["recipe.lrr", "recipe.lr"]),
        (["run", "quickstart", "--dataset=folder:/nowhere"], ["/nowhere"]),
        (["run", "quickstart", "--model.groups=5"], ["5 equal groups", "32 channels"]),
        (["list", "--yaml"], ["--yaml", "--json"]),
        (["cost"], ["name is missing"]),
        (["cost", "alexnt"], ["alexnt", "did you mean alexnet", "torchvision:NAME"]),
        (["cost", "alexnet", "--model.groups=7"], ["7 equal groups"]),
        (["cost", "alexnet", "--model.group=2"], ["model.group", "model.groups"]),
        (["cost", "alexnet", "--input_size=20"], ["input_size=20"]),
        (["cost", "torchvision:resnet51"], ["resnet51", "torchvision:resnet50"]),
        (["cost", "resnet51"], ["resnet51", "did you mean torchvision:resnet50?"]),
        (["cost", "torchvision:alexnt"], ["did you mean"]),
        (["figures", "connections", "--model=resnet51"], ["did you mean torchvision:resnet50?"]),
        (["run", "nope.yaml"], ["error: nope.yaml: "]),
        (["sweep", "not/here.yaml"], ["error: not/here.yaml: there is no such file"]),
        (["cost", "small", "--regroup=logs"], ["'logs' cannot be read", "log:4"]),
        (["cost", "small", "--regroup=7"], ["cuts 0 of 3 convolutions", "7 equal groups"]),
        (["cost", "small", "--regroup=4", "--where=conv4"], ["'conv4'", "near it: conv"]),
        (["cost", "torchvision:resnet18", "--regroup=4", "--where=layer4"], ["write layer4.*"]),
        (["cost", "small", "--where=conv2"], ["--where=conv2", "--regroup"]),
        (["cost", "small", "--csv", "--json"], ["--csv --json"]),
        (["cost", "small", "--csv", "--measure"], ["--measure", "--json"]),
        (["cost", "small", "--regrup=4"], ["regrup", "did you mean regroup"]),
        (["cost", "small", "--regroup=4", "--input_size=1"], ["cannot take an input of 3 × 1 × 1"]),
        (["status", "quikstart"], ["did you mean quickstart"]),
        (["status", "quickstart", "--recipe.lrr=1"], ["recipe.lrr", "recipe.lr"]),
        (["status", "--runs_root=README.md"], ["runs_root=README.md: a file, not a folder"]),
        (["status", "group-parallel", "--runs_root=README.md"], ["runs_root=README.md: a file, not a folder"]),
        (["figures", "quickstart", "--runs_root=README.md"], ["--runs_root=README.md: a file, not a folder"]),
        (["report", "--runs_root=README.md"], ["--runs_root=README.md: a file, not a folder"]),
        (["report", "--runs_rot=runs"], ["unknown flag --runs_rot=runs; did you mean --runs_root?"]),
        (["report", "widen", "quickstart"], ["report widen quickstart: one study at a time"]),
        (["results", "quickstart", "--replce"], ["unknown flag --replce; did you mean --replace?"]),
        (["gather", "quickstart", "--frm=x"], ["gather quickstart: --frm=x: did you mean --from=PATH?"]),
        (["verify", "--retran"], ["verify: --retran: did you mean --retrain, which takes no value?"]),
        (["verify", "--retrain=maybe"], ["verify: --retrain=maybe: did you mean --retrain, which takes no value?"]),
        (["claims", "--json", "--markdown"], ["claims: --json --markdown: give one of them"]),
        (["claims", "--runs_root="], ["claims: --runs_root=: the value is missing"]),
        (["run", "quickstart", "--profile="], ["run: --profile=: the value is missing"]),
        (["cost", "small", "--regroup", ""], ["cost: --regroup: the value is missing"]),
        (["sweep", "photos-bayes", "--recipe.lr=1"], ["sweep: --recipe.lr=1: ", "photos-bayes.yaml searches this key"]),
        (["figures", "quickstart", "--to=x"], ["--to=x", "--runs_root", "--format=A,B, --width=W, --bare"]),
        (["figures", "--to=x"], ["--to=x", "--runs_root", "--format=A,B, --width=W, --bare"]),
        (["run", "quickstart", "--only="], ["run: --only=: the value is missing"]),
        (["run", "quickstart", "--recipe.batch_size=0"], ["command line: recipe.batch_size=0: must be at least 1"]),
        (["run", "quickstart", "--seeds_at_once=x"], ["seeds_at_once=x: must be auto or a whole number"]),
        (["run", "quickstart", "--recipe.precision=fp8"], ["recipe.precision=fp8: must be auto or fp32 or bf16"]),
        (["run", "quickstart", "--seeds=2.5"], ["command line: seeds=2.5: must be a whole number"]),
        (["run", "quickstart", "--recipe.lr=-1"], ["command line: recipe.lr=-1"]),
        (["run", "quickstart", "--recipe.epochs=0"], ["command line: recipe.epochs=0"]),
        (["run", "quickstart", "--data.cutout=-3"], ["command line: data.cutout=-3"]),
        (["run", "quickstart", "--model=alexnet"], ["--model=alexnet: write --model.name=alexnet"]),
        (["run", "quickstart", "--xyzzy=1"], ["unknown key xyzzy", "nearest of "]),
        (["run", "quickstart", "--wandb=online"], ["wandb=online: nobody is logged in", "wandb login"]),
        (["run", "photos-bayes"], ["NAME=photos-bayes: a sweep", "make sweep NAME=photos-bayes"]),
        (["sweep", "quickstart"], ["NAME=quickstart: a study", "make experiment NAME=quickstart"]),
        (["claims", "--runs_root=/nowhere"], ["--runs_root=/nowhere: no such folder"]),
        (["status", "group-parallel", "--devices=0"], ["command line: devices=0: must be at least 1"]),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, words):
    if arguments[0] == "run":
        off = [] if "--wandb=online" in arguments else ["--wandb=off"]
        arguments = [*arguments, f"--runs_root={tmp_path}/runs", f"--data_root={tmp_path}/data", *off]
        arguments = arguments if len(arguments) > 4 else ["run"]
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    code, _, err = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "runs").exists(), "nothing is begun"


def test_cost_of_alexnet_as_json(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "cost", "alexnet", "--model.groups=2", "--json")
    assert code == 0
    cost = json.loads(out)
    assert (cost["parameters"], cost["macs"]) == (60_965_224, 724_406_816)
    assert cost["activations"] == 96 * 55**2 + 256 * 27**2 + (384 + 384 + 256) * 13**2


def test_cost_as_a_table_names_layers_and_total(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "cost", "small", "--model.groups=log:4", "--measure", "--batch=1")
    assert code == 0
    for word in ("conv2", "GroupedConv2d", "total", "latency_ms", "peak_memory_bytes"):
        assert word in out


def test_cost_of_a_torchvision_model(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "cost", "torchvision:mobilenet_v2", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 3_504_872


def test_cost_takes_the_names_that_measure_takes(capsys, monkeypatch):
    """25,557,032 parameters: torchvision's page of ResNet-50. The suite's own alexnet is not torchvision's."""
    _, out, _ = run(capsys, monkeypatch, "cost", "resnet50", "--json")
    assert json.loads(out)["parameters"] == 25_557_032
    _, out, _ = run(capsys, monkeypatch, "cost", "torchvision:alexnet", "--json")
    assert json.loads(out)["parameters"] == 61_100_840
    _, out, _ = run(capsys, monkeypatch, "cost", "alexnet", "--model.groups=2", "--json")
    assert json.loads(out)["parameters"] == 60_965_224


def test_cost_as_csv_has_one_line_per_layer(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "cost", "small", "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["layer", "kind", "parameters", "macs", "activations"]
    (conv2,) = (row for row in rows if row["layer"] == "conv2")
    assert int(conv2["parameters"]) == 32 * 64 * 9
    assert int(conv2["macs"]) == 32 * 64 * 9 * int(conv2["activations"]) // 64


def test_cost_before_and_after_regrouping_as_json_and_as_csv(capsys, monkeypatch):
    arguments = ("cost", "torchvision:vgg11", "--regroup=log:3", "--where=features.3,features.0")
    _, text, _ = run(capsys, monkeypatch, *arguments, "--json")
    _, table, _ = run(capsys, monkeypatch, *arguments, "--csv")
    cost, rows = json.loads(text), list(csv.DictReader(io.StringIO(table)))
    spared = 64 * 128 * 9 * 5 // 8  # log:3 keeps 1/4 + 1/16 + 1/16 of the weights
    assert cost["before"]["parameters"] - cost["after"]["parameters"] == spared
    assert cost["before"]["macs"] - cost["after"]["macs"] == spared * 112**2
    assert cost["before"]["activations"] == cost["after"]["activations"]
    assert list(cost["skipped"]) == ["features.0"]
    for side in ("before", "after"):
        for measure in ("parameters", "macs"):
            assert sum(int(row[f"{measure}_{side}"]) for row in rows) == cost[side][measure]
    assert [(row["layer"], row["groups"]) for row in rows if row["groups"]] == [("features.3", "log:3")]


def test_cost_of_regrouping_as_a_table_names_what_was_cut_and_what_was_not(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "cost", "torchvision:mobilenet_v2", "--regroup=log:4")
    assert code == 0
    lines = out.splitlines()
    (last,) = (line for line in lines if line.startswith("features.18.0"))
    assert last.split()[1:6] == ["log:4", "409,600", "->", "140,800", "-65.6%"]
    assert [line.split()[0] for line in lines if line.startswith("total")] == ["total"]
    assert "34 of 52 convolutions regrouped" in lines
    (depthwise,) = (line for line in lines if "depthwise" in line)
    assert out.index("features.17.conv.1.0") > out.index(depthwise)
    assert len([line for line in lines if line.startswith("not regrouped")]) == 2
    assert max(map(len, lines)) <= 120


def test_cost_of_regrouping_is_measured_side_by_side(capsys, monkeypatch):
    flags = ["--regroup=4", "--measure", "--batch=1", "--device=cpu", "--json"]
    code, out, _ = run(capsys, monkeypatch, "cost", "small", *flags)
    assert code == 0
    for side in ("before", "after"):
        measured = json.loads(out)[side]
        assert measured["latency_ms_lower_quartile"] <= measured["latency_ms"] <= measured["latency_ms_upper_quartile"]
        assert measured["peak_memory_bytes"] > 0


def test_a_full_disk_is_one_line(capsys, monkeypatch):
    def full(_arguments):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("experiments.commands.list.main", full)
    code, _, err = run(capsys, monkeypatch, "list")
    assert code == 1
    assert err == "error: runs/x: No space left on device; nothing was half-written\n"


@pytest.mark.parametrize(
    "notice",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_an_interrupted_study_ends_cleanly_and_goes_on(tmp_path, notice):
    command = [sys.executable, "-m", "experiments", "run", "quickstart", "--only=dense", "--seeds=1", "--wandb=off"]
    command += [f"--runs_root={tmp_path}/runs", f"--data_root={tmp_path}/data", "--model.width=4", "--recipe.epochs=60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which is ignored where tests run behind `&`
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/quickstart/*/checkpoint.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(notice)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in err
    assert "Traceback" not in err
    (folder,) = tmp_path.glob("runs/quickstart/*/")
    assert (folder / "metrics.jsonl").is_file()
    assert not (folder / "result.json").exists()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "nothing half-written"


@pytest.mark.parametrize(("command", "saves"), [("run", True), ("sweep", True), ("verify", False), ("claims", False)])
def test_only_commands_that_save_say_so_when_interrupted(capsys, monkeypatch, command, saves):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "main", interrupt)
    code, _, err = run(capsys, monkeypatch, command, "quickstart")
    assert code == 130
    saved = ": what was trained is saved; the same command goes on from there" if saves else ""
    assert err == f"\ninterrupted{saved}\n"


@pytest.mark.parametrize(
    ("place", "said"),
    [("file", "command line: runs_root={}: a file, not a folder\n"), ("/proc/nothing", "runs_root={}: ")],
)
def test_a_folder_of_runs_that_cannot_be_written_is_refused_before_anything_is_trained(
    capsys, monkeypatch, tmp_path, place, said
):
    (tmp_path / "file").write_text("not a folder")
    place = place if place.startswith("/") else str(tmp_path / place)
    code, out, err = run(capsys, monkeypatch, "run", "quickstart", f"--runs_root={place}", "--wandb=off")
    assert code == 2
    assert err.startswith(f"error: {said.format(place)}")
    assert err.count("\n") == 1 and not out


def test_many_names_are_cut_to_the_nearest():
    names = [f"model_{k}" for k in range(200)]
    assert hint("xyz", names).count(",") == MAX_NAMES_LISTED - 1
    assert hint("model_17", names) == "did you mean model_17?"
    assert hint("a", ["b", "c"]) == "there are: b, c"


def test_what_is_to_be_typed_is_make_in_the_checkout_and_this_python_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(CONFIGS.parent)
    assert typed("run", "runs/a b.yaml") == "make experiment NAME='runs/a b.yaml'"
    monkeypatch.chdir(tmp_path)
    line = shlex.split(typed("list"))
    ran = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(CONFIGS.parent)})
    assert ran.returncode == 0 and "quickstart" in ran.stdout


def test_list_and_status_count_the_same_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "quickstart" / "dense-seed0-00000000"
    other.mkdir(parents=True)
    write_json(other / "config.json", {"variant": "dense", "seed": 0, "recipe": {"epochs": 1}})
    write_json(other / "result.json", {"status": "done", "test_accuracy": 0.1, "seconds": 1.0})
    _, listed, _ = run(capsys, monkeypatch, "list", "--json")
    _, stood, _ = run(capsys, monkeypatch, "status", "quickstart", "--json")
    (quickstart,) = (study for study in json.loads(listed) if study["name"] == "quickstart")
    (of_status,) = json.loads(stood)
    assert (quickstart["runs_done"], quickstart["runs"]) == (of_status["counts"]["done"], len(of_status["runs"]))
    assert of_status["others"] == 1


@pytest.mark.parametrize(("launched", "code"), [(True, 3), (False, -signal.SIGABRT)], ids=["one of several", "alone"])
def test_a_rank_ends_with_its_own_code_whatever_libraries_do_at_the_very_end(launched, code):
    """A global whose destructor aborts, as gloo's threads may; what was registered for the end has run before."""
    program = "import atexit, os, experiments.__main__ as m\n"
    program += "class Aborts:\n    def __del__(self): os.abort()\n"
    program += "held = Aborts()\natexit.register(print, 'registered')\nm.end(3)"
    environment = {**os.environ, **({"TORCHELASTIC_RUN_ID": "1"} if launched else {})}
    completed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stdout) == (code, "registered\n")


def test_figures_of_a_study_with_neither_runs_nor_record_name_the_command_that_runs_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.commands.figures.HOME", tmp_path)
    code, _, err = run(capsys, monkeypatch, "figures", "widen", f"--runs_root={tmp_path}")
    assert code == 2
    (line,) = err.splitlines()
    assert f"{tmp_path}/widen/tables has no measures.csv" in line and "make experiment NAME=widen" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_one_line(unbuffered):
    command = [sys.executable, "-m", "experiments", "list"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device\n")
