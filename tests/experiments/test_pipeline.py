"""Whole studies, small: every shipped configuration goes through training, measuring and drawing."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis.figures.registry import FIGURES
from experiments.commands import trained
from experiments.data.augment import Views
from experiments.errors import UsageError
from experiments.execution.study_runs import train_all
from experiments.measure.images import MeasuredImages
from experiments.models import build_model
from experiments.pipeline import measure_all, run_study
from experiments.report import summary as report
from experiments.report import write_record
from experiments.report.pictures import figure_name
from experiments.store import leases
from experiments.store.runs import Run
from experiments.study.catalogue import trained_studies
from experiments.study.config import load_study
from experiments.study.plan import plan
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from gconv import GroupedConv2d
from gconv.cost import count_cost
from tiny_images import tiny_dataset

SMALL = ["--seeds=1", "--recipe.epochs=1", "--recipe.batch_size=24"]
SMALL += ["--measures.images=8", "--measures.permutations=99", "--recipe.device=cpu", "--wandb=off"]
SMALL += ["--measures.draws=0", "--measures.lesion_images=0"]  # the costly nulls have a test of their own


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
    """Time little and look at few crops: the numbers do not matter here."""
    monkeypatch.setattr("experiments.measure.first_layer.CROPS", 2)
    monkeypatch.setattr("experiments.measure.speed.LATENCY_BATCH", 2)
    monkeypatch.setattr("experiments.measure.speed.LATENCY_REPEATS", 1)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time of a small study."""
    monkeypatch.setattr("experiments.report.summary.draw_figures", lambda _folder: [])


@pytest.fixture
def two_units(monkeypatch):
    """ShuffleNet has two units a stage, one of either kind, as wide as published."""
    monkeypatch.setattr("experiments.models.shufflenet.UNITS", (2, 2, 2))


def small_study(name, tmp_path, *flags):
    return load_study(name, [*SMALL, f"--runs_root={tmp_path}", *flags])


TWINS = ("shufflenet-shuffle", "alexnet-colour")  # of another study's architecture, and as long


def costs(study):
    """MACs of every variant."""
    macs = {}
    for v in study.variants:
        with torch.device("meta"):
            model = build_model(**v.model, classes=2, input_size=v.views.crop_size)
        macs[v.name] = count_cost(model, (3, v.views.crop_size, v.views.crop_size)).macs
    return macs


@pytest.mark.usefixtures("two_units")
@pytest.mark.parametrize("name", TWINS)
def test_every_variant_of_a_study_that_takes_no_step_is_built_and_counted(name, tmp_path):
    assert min(costs(small_study(name, tmp_path)).values()) > 0


@pytest.mark.usefixtures("tiny", "two_units")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in TWINS else []) for name in trained_studies()],
)
def test_every_study_takes_one_step(name, tmp_path, capsys, monkeypatch):
    """Every variant is built and counted; the cheapest goes all the way, to where its figures are drawn."""
    drawn = []
    monkeypatch.setattr("experiments.report.summary.draw_figures", lambda folder: drawn.append(folder) or [])
    macs = costs(small_study(name, tmp_path))
    assert min(macs.values()) > 0
    smaller = [] if name.startswith("alexnet-") else ["--data.image_size=16", "--data.crop_size=16"]
    study = small_study(name, tmp_path, f"--only={min(macs, key=lambda name: macs[name])}", *smaller)
    assert run_study(study) == 0
    assert drawn == [study.folder]
    table = report.read_measures(study.folder)
    assert list(dict.fromkeys(table["variant"])) == [v.name for v in study.variants]
    assert table["value"].notna().all()
    for measure in ("test_accuracy", "parameters", "macs", "activations", "latency", "peak_memory", "learned_filters"):
        assert set(table.loc[table["measure"] == measure, "variant"]) == {v.name for v in study.variants}, measure
    out = capsys.readouterr().out
    assert study.question in out
    for variant in study.variants:
        assert variant.name in out


@pytest.mark.usefixtures("tiny", "no_figures")
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_null_is_measured_where_it_is_asked_for(tmp_path, monkeypatch, precision):
    """In either precision that ``auto`` may choose."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: precision == "bfloat16")
    flags = ["--only=dense,groups-2,log-4", "--measures.images=12", "--measures.draws=1", "--measures.lesion_images=12"]
    study = small_study("quickstart", tmp_path, *flags)
    assert run_study(study) == 0
    assert {p.run.result["precision"] for p in plan(study) if p.run.result} == {precision}
    table = report.read_measures(study.folder)
    assert table["value"].notna().all()

    def measured(variant, measure, null=""):
        chosen = (table["variant"] == variant) & (table["measure"] == measure) & (table["null"] == null)
        return set(table.loc[chosen, "layer"])

    grouped, dense = {"conv2", "conv3"}, {"conv1", "conv2", "conv3"}
    for null in ("", "untrained", "random filters", "rotated filters"):
        assert measured("groups-2", "within_computed", null) == grouped, null
        assert measured("groups-2", "cka_between", null) == grouped, null
        assert measured("dense", "mean_abs_correlation", null) >= grouped, null
        of_dense = f"{null}, arbitrary partition" if null else "arbitrary partition"
        assert measured("dense", "cka_between", of_dense) >= grouped, null
        assert measured("groups-2", "on_block_share", null) == {"conv1-conv2", "conv2-conv3"}, null
    assert measured("groups-2", "within_input_of_dense", "untrained") == {"conv2"}, "conv3 reads what conv2 cut"
    assert measured("dense", "colour_difference", "contiguous partition, labels permuted") <= {"conv1"}
    assert measured("dense", "clean_train_accuracy") == {""}
    for null in ("arbitrary partition", "contiguous partition", "spectral partition", "spectral partition, sizes kept"):
        assert measured("dense", "between_computed", null) == dense, null
    assert measured("log-4", "cka_between") == measured("log-4", "cka_between", "untrained") == grouped
    assert measured("dense", "cka_between", "arbitrary partition") == dense
    for null in ("", "untrained", "block areas"):
        assert measured("groups-2", "on_block_energy", null) == {"conv1-conv2", "conv2-conv3"}, null
    for replacement in ("zero", "mean"):
        for null in ("", "random sets"):
            assert measured("log-4", f"lesion_{replacement}_group_4_on_grey", null) == {"conv1"}
    for side in ("computed", "input"):
        assert (
            measured("groups-2", f"within_{side}", "untrained")
            == measured("log-4", f"training_ratio_{side}")
            == grouped
        )
    assert measured("dense", "within_computed", "arbitrary partition, 4 groups") == dense
    assert measured("log-4", "clusters_are_groups_computed", "untrained") == grouped
    for null in ("", "chance", "random sets"):
        assert measured("groups-2", "probe_frequency_group_2", null) == {"conv1"}, null
    assert not measured("dense", "probe_frequency_group_1")
    areas = table[(table["measure"] == "on_block_energy") & (table["null"] == "block areas")].set_index("variant")
    assert (areas.loc["groups-2", "value"] == 0.5).all()
    assert areas.loc["log-4", "value"].to_list() == [0.34375, 0.34375]
    summary = report.tables_folder(study.folder) / "summary.txt"
    assert "Groups against their nulls" in summary.read_text(encoding="utf-8")


@pytest.mark.usefixtures("tiny", "no_figures")
def test_what_is_done_is_not_done_again(tmp_path, capsys, monkeypatch):
    study = small_study("quickstart", tmp_path, "--only=dense,log-4")
    run_study(study)
    first = report.read_measures(study.folder)
    monkeypatch.setattr("experiments.execution.planned_run.train_run", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("experiments.pipeline.measure_run", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("experiments.pipeline.measure_speed", lambda *_: pytest.fail("timed again"))
    assert run_study(study) == 0
    assert capsys.readouterr().out.count("(done before)") == 2
    pd.testing.assert_frame_equal(first, report.read_measures(study.folder))


@pytest.mark.usefixtures("tiny", "no_figures")
def test_a_damaged_table_is_named_and_made_again_from_the_run(tmp_path, capsys, monkeypatch):
    study = small_study("quickstart", tmp_path, "--only=dense")
    run_study(study)
    first = report.read_measures(study.folder)
    timed = first["measure"].str.contains("latency|memory|seconds")
    monkeypatch.setattr("experiments.execution.planned_run.train_run", lambda *_: pytest.fail("trained again"))
    tables, (of_run,) = report.tables_folder(study.folder), study.folder.glob("dense-*/measures.csv")
    (speed,) = tables.glob("speed-*.csv")
    for path, again in {
        of_run: "the run is measured again",
        of_run.with_name("notes.csv"): "the run is measured again",
        of_run.with_name("arrays.npz"): "the run is measured again",
        of_run.with_name("measured.json"): "the run is measured again",
        speed: "times are measured again",
    }.items():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        for of_study in ("measures.csv", "notes.csv", "runs.csv", "curves.csv", "study.json"):
            (tables / of_study).write_text("broken")
        capsys.readouterr()
        assert run_study(study) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
        assert line.startswith(f"warning: {path}: damaged: ")
        assert line.endswith(again)
        measures = report.read_measures(study.folder)
        pd.testing.assert_frame_equal(first[~timed], measures[~timed])
        assert measures["value"].notna().equals(first["value"].notna())


@pytest.mark.usefixtures("tiny")
def test_a_changed_configuration_is_another_run(tmp_path):
    first = {p.run.folder for p in plan(small_study("quickstart", tmp_path))}
    other = {p.run.folder for p in plan(small_study("quickstart", tmp_path, "--recipe.lr=0.01"))}
    assert not first & other


@pytest.mark.usefixtures("tiny", "no_figures")
def test_a_run_that_diverges_does_not_stop_the_others_and_the_exit_code_tells(tmp_path, capsys, monkeypatch):
    step = GroupedConv2d.forward

    def breaks(self, x):
        y = step(self, x)
        return y * float("nan") if self.training and self.groups == 4 else y

    monkeypatch.setattr(GroupedConv2d, "forward", breaks)
    study = small_study("quickstart", tmp_path, "--only=groups-4,dense")
    assert run_study(study) == 1
    out = capsys.readouterr().out
    assert "groups-4, seed 0: diverged: the loss became nan" in out
    assert "dense, seed 0: accuracy" in out
    assert set(report.read_measures(study.folder)["variant"]) == {"dense"}
    # It is known to diverge: reported again, not trained again.
    monkeypatch.setattr("experiments.execution.planned_run.train_run", lambda *_: pytest.fail("trained again"))
    assert run_study(study) == 1


@pytest.mark.usefixtures("tiny", "no_figures")
def test_a_run_out_of_memory_is_told_and_tried_again_the_next_time(tmp_path, capsys, monkeypatch):
    study = small_study("quickstart", tmp_path, "--only=dense")
    with monkeypatch.context() as patch:

        def full(*_arguments, **_named):
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr("experiments.training.learner.F.cross_entropy", full)
        assert run_study(study) == 1
    assert "dense, seed 0: failed: out of memory on cpu; a smaller recipe.batch_size" in capsys.readouterr().out
    assert run_study(study) == 0


@pytest.mark.usefixtures("tiny")
def test_a_run_in_other_hands_is_left_to_them_and_waited_for(tmp_path, capsys, monkeypatch):
    study = small_study("quickstart", tmp_path, "--only=dense,groups-2")
    (dense, groups) = plan(study)
    other = leases.claim(dense.run.folder)
    assert other is not None

    def the_other_ends(_seconds):
        assert groups.run.result is not None, "first what is free"
        dense.run.finish("done", {"test_accuracy": 0.5, "seconds": 1.0}, "elsewhere")
        other.release(remove=True)

    monkeypatch.setattr("experiments.store.work_sharing.sleep", the_other_ends)
    assert train_all(study, plan(study)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["[2/2] groups-2, seed 0", *["[1/2] dense, seed 0"] * 2]
    assert "in training by another process" in lines[1]
    assert "accuracy 0.500, 1 s (by another process)" in lines[2]


@pytest.mark.usefixtures("tiny")
def test_figures_are_drawn_from_saved_tables_only(tmp_path):
    flags = ["--only=groups-2", "--measures.images=12", "--measures.draws=1", "--measures.lesion_images=12"]
    study = small_study("quickstart", tmp_path, *flags)
    train_all(study, plan(study))
    measure_all(study, plan(study))
    for folder in study.folder.iterdir():
        if folder.name not in ("tables", "figures"):
            for file in folder.iterdir():
                file.unlink()
    drawn = report.draw_figures(study.folder)
    assert {path.suffix for path in drawn} == {".pdf", ".png"}
    names = {"filters", "separation", "correlation", "nulls", "interlayer", "similarity", "lesions", "probes"}
    assert {path.stem for path in drawn} == names | {"tradeoff", "learning-curves"}
    assert {figure_name(path) for path in drawn} <= {figure.name for figure in FIGURES}


@pytest.mark.usefixtures("tiny", "no_figures")
def test_results_are_kept_and_the_page_shows_them(tmp_path, monkeypatch, capsys):
    study = small_study("quickstart", tmp_path / "runs", "--only=dense")
    run_study(study)
    page = tmp_path / "docs" / "index.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- results quickstart -->\nold\n<!-- end results quickstart -->\nafter\n")
    kept = trained.write_record(study.folder, tmp_path)
    assert {path.name for path in kept} >= {"measures.csv.xz", "runs.csv", "summary.txt", "filters.png", "index.md"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end results quickstart -->\nafter\n")
    assert "old" not in text
    accuracy = report.read_measures(study.folder).query("measure == 'test_accuracy'")["value"].item()
    assert f"| dense | {accuracy:.3f} | 1 |" in text
    names = ("filters.png", "filters-2.png", "tradeoff.png", "tradeoff.pdf", "learning-curves.png")
    pictures = [tmp_path / name for name in names]
    for path in pictures:
        Image.new("RGB", (8, 8)).save(path, path.suffix[1:])
    monkeypatch.setattr(write_record, "LARGEST_FIGURE", 1.5 * pictures[0].stat().st_size)
    monkeypatch.setattr(write_record, "draw_figures", lambda folder: pictures)
    capsys.readouterr()
    trained.write_record(study.folder, tmp_path)
    recorded = {path.name for path in (tmp_path / "results" / "quickstart").glob("*.p*")}
    assert recorded == {"tradeoff.png", "learning-curves.png"}
    assert capsys.readouterr().out.endswith("make figures draws them: filters\n")


@pytest.mark.usefixtures("tiny", "no_figures")
def test_measured_values_are_those_of_the_trained_network(tmp_path):
    study = small_study("quickstart", tmp_path, "--only=groups-2", "--measures.images=99")
    run_study(study)
    (planned,) = plan(study)
    model = planned.trained_model().eval()
    with np.load(planned.run.folder / "arrays.npz") as arrays:
        assert np.array_equal(arrays["filters"], model.conv1.weight.detach().numpy())
        context = planned.context()
        x = context.test_inputs(torch.arange(12))[0]
        with torch.no_grad():
            responses = model.conv1(x).movedim(1, 0).flatten(1).double()
        assert np.allclose(arrays["correlation conv1"], torch.corrcoef(responses), atol=1e-4)
    result = json.loads((planned.run.folder / "result.json").read_text())
    table = report.read_measures(study.folder)
    assert table.loc[table["measure"] == "test_accuracy", "value"].item() == result["test_accuracy"]


@pytest.mark.parametrize("images", [5, 6, 12, 99])
def test_measured_images_are_spread_over_all_of_them(images):
    context = RunContext.of(tiny_dataset(), Views(12, 12), Recipe(device="cpu"))
    measured_images = MeasuredImages(context, images)
    inputs, labels = zip(*measured_images.labelled(), strict=True)
    assert sum(map(len, inputs)) == len(torch.cat(labels)) == min(images, 12)
    assert any(
        torch.allclose(inputs[-1][-1], context.test_inputs(torch.tensor([k]))[0][0], atol=1e-5) for k in (9, 10, 11)
    )
    places = torch.tensor([3, 0, 4])
    assert torch.equal(measured_images.normalised(measured_images.plain_at(places)), torch.cat(inputs)[places])
    for part, grey in zip(measured_images.plain(), measured_images.grey().plain(), strict=True):
        assert 0 <= part.min() <= part.max() <= 1
        assert torch.equal(grey[:, 0], grey[:, 2])
        assert not torch.equal(part[:, 0], part[:, 2])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.crop_size=4"], ["crop_size=4", "dense"]),
        (["--recipe.device=meta"], ["recipe.device=meta", "cpu"]),
        (["--model.groups=5"], ["5 equal groups"]),
        (["--model.width=-4"], ["model small", "model.width=-4"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_told_before_anything_is_trained(tmp_path, flags, words):
    with pytest.raises(UsageError) as error:
        plan(small_study("quickstart", tmp_path, *flags))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny")
def test_weights_that_are_no_longer_finite_are_no_result(tmp_path):
    study = small_study("quickstart", tmp_path, "--only=dense", "--recipe.lr=1e38")
    assert run_study(study) == 1
    (planned,) = plan(study)
    assert planned.run.result is not None
    assert planned.run.result["status"] == "diverged"


@pytest.mark.usefixtures("tiny", "no_figures")
def test_what_changed_about_a_study_is_kept_with_its_tables(tmp_path):
    study = small_study("quickstart", tmp_path, "--only=dense", "--dataset=folder:/somewhere/private")
    run_study(study)
    kept = json.loads((report.tables_folder(study.folder) / "study.json").read_text())["overrides"]
    assert kept["dataset"] == "folder:PATH"
    assert kept["recipe.epochs"] == 1
    assert "runs_root" not in kept
    for table in report.tables_folder(study.folder).glob("*.csv"):
        assert "/somewhere/private" not in table.read_text()


@pytest.mark.usefixtures("tiny", "no_figures")
def test_tables_follow_the_order_of_the_variants(tmp_path):
    study = small_study("quickstart", tmp_path, "--only=dense,groups-2")
    planned = plan(study)
    train_all(study, planned)
    measure_all(study, planned[::-1])
    assert list(dict.fromkeys(report.read_measures(study.folder)["variant"])) == ["dense", "groups-2"]


@pytest.mark.usefixtures("tiny")
def test_the_untrained_network_is_the_one_the_seed_makes(tmp_path):
    (planned,) = plan(small_study("quickstart", tmp_path, "--only=dense"))
    first, again = planned.fresh_model(), planned.fresh_model()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_runs_of_a_study_are_balanced_over_its_variants(tmp_path, tiny):
    runs: list[Run] = [p.run for p in plan(load_study("quickstart", ["--seeds=2", f"--runs_root={tmp_path}"]))]
    assert [(r.variant, r.seed) for r in runs[:5]] == [
        ("dense", 0),
        ("groups-2", 0),
        ("groups-4", 0),
        ("log-4", 0),
        ("dense", 1),
    ]


@pytest.mark.usefixtures("tiny", "no_figures")
def test_the_start_line_names_the_precision_that_is_trained_in(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    study = small_study("quickstart", tmp_path, "--only=dense", "--precision=fp32")
    assert run_study(study) == 0
    start = capsys.readouterr().out.splitlines()[0]
    assert "float32" in start and "bfloat16" not in start
    assert plan(study)[0].run.result["precision"] == "float32"
