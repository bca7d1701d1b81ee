"""``measure`` as a user types it: networks that were trained elsewhere, and all that can be wrong with them."""

import json
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import __main__ as command_line
from experiments.foreign.images import load_images
from experiments.models import build_model
from experiments.report import summary as report
from experiments.report.tables import read_table
from experiments.store.runs import write_json
from experiments.vision import import_torchvision

QUICK = ["--measures.permutations=20", "--measures.draws=0"]
SMALL = ["--model=small", "--model.groups=2", "--model.width=8"]


@pytest.fixture
def quick_figures(monkeypatch):
    """Figures are drawn in no time: one file without a picture."""

    def draw(_table, _arrays, folder):
        folder.mkdir(parents=True)
        (folder / "new.png").write_bytes(b"")
        return [folder / "new.png"]

    monkeypatch.setattr(report, "draw_measured", draw)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Exit code, standard output and standard error of ``measure …`` in a folder of its own, in this process."""

    def measure(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", "measure", *map(str, arguments)])
        code = command_line.entry()
        said = capsys.readouterr()
        return code, said.out, said.err

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return measure


def small(classes=2, seed=0, groups=2):
    torch.manual_seed(seed)
    return build_model("small", classes=classes, groups=groups, width=8)


@pytest.fixture
def weights(tmp_path):
    """A state_dict of two groups and two classes, in a file."""
    torch.save(small(seed=5).state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def table(folder):
    return read_table(folder / "measures.csv")


def value(folder, measure, null="", layer=""):
    rows = table(folder)
    (number,) = rows[(rows["measure"] == measure) & (rows["null"] == null) & (rows["layer"] == layer)]["value"]
    return number


def notes(folder):
    return dict(pd.read_csv(folder / "notes.csv")[["measure", "note"]].values.tolist())


def test_it_writes_tables_arrays_and_figures_and_says_what_it_found(run, tmp_path, weights, image_folder):
    code, out, err = run(*SMALL, f"--checkpoint={weights}", f"--data={image_folder}", *QUICK)
    folder = tmp_path / "here/measured/small-mine"
    assert (code, err) == (0, "")
    assert {"measures.csv", "notes.csv", "arrays.npz", "measured.json", "figures"} == {p.name for p in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["small-mine"], "nothing is left beside it"
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"filters.png", "filters.pdf", "correlation.png"} <= figures
    for name in ("filters.png", "correlation.png"):
        assert f"measured/small-mine/figures/{name}" in out
    for words in ("small, mine: ", "accuracy ", "on 6 images", "values without intervals", "untrained", "Notes"):
        assert words in out
    with np.load(folder / "arrays.npz") as arrays:
        assert np.array_equal(arrays["filters"], small(seed=5).conv1.weight.detach().numpy())
    rows = table(folder)
    assert set(rows["variant"]) == {"small"}
    assert {"", "untrained", "labels permuted"} <= set(rows["null"])
    assert value(folder, "lesion_zero_group_1_on_colour", layer="conv1") <= 1


@pytest.mark.usefixtures("quick_figures")
def test_accuracy_is_that_of_the_weights_on_the_images_as_the_network_sees_them(run, tmp_path, weights, image_folder):
    flags = ["--input_size=16", "--image_size=20", f"--out={tmp_path}/out", *QUICK, "--measures.lesion_images=0"]
    code, _, err = run(*SMALL, f"--checkpoint={weights}", f"--data={image_folder}", *flags)
    assert (code, err) == (0, "")
    dataset = load_images(image_folder, 20, 6)
    x = dataset.test.pixels[:, 2:18, 2:18].permute(0, 3, 1, 2).float()
    x = (x - dataset.mean.view(3, 1, 1)) / dataset.std.view(3, 1, 1)
    right = small(seed=5).eval()(x).argmax(1) == dataset.test.labels
    assert value(tmp_path / "out", "test_accuracy") == right.float().mean().item()


@pytest.mark.usefixtures("quick_figures")
def test_a_run_of_this_suite_is_measured_as_it_was_built_shown_and_begun(run, tmp_path, image_folder):
    folder = tmp_path / "log-4-seed3"
    torch.manual_seed(3)
    untrained = build_model("small", classes=2, groups="log:4", width=16)
    folder.mkdir()
    torch.save({"model": untrained.state_dict(), "optimizer": {}, "history": []}, folder / "checkpoint.pt")
    views = {"image_size": 20, "crop_size": 16, "colour": "grey"}
    config = {"model": {"name": "small", "groups": "log:4", "width": 16}, "views": views, "seed": 3}
    write_json(folder / "config.json", config)
    code, out, err = run("--model=small", f"--checkpoint={folder}/checkpoint.pt", f"--data={image_folder}", *QUICK)
    assert (code, err) == (0, "")
    measured = tmp_path / "here/measured/small-log-4-seed3"
    record = json.loads((measured / "measured.json").read_text())
    assert record["model"] == config["model"]
    assert views.items() <= record["views"].items()
    assert "model.groups=log:4" in out
    # Its training has changed nothing, so that it is its own null.
    assert value(measured, "correlation_with_initialisation", layer="conv1") == pytest.approx(1)
    # Behind a batch norm they differ: that of the null is calibrated, that of the checkpoint is taken as it is.
    null = value(measured, "mean_abs_correlation", "untrained", "conv1")
    assert value(measured, "mean_abs_correlation", "", "conv1") == null


@pytest.mark.usefixtures("quick_figures")
def test_a_flag_goes_before_what_the_run_recorded(run, tmp_path, image_folder, weights):
    config = {"model": {"name": "small", "groups": 4, "width": 8}, "seed": 3}
    write_json(tmp_path / "config.json", {**config, "views": {"image_size": 20, "crop_size": 16, "colour": "colour"}})
    flags = ["--model=small", f"--checkpoint={weights}", f"--data={image_folder}", *QUICK, f"--out={tmp_path}/out"]
    code, _, err = run(*flags)
    assert code == 2
    assert "does not fit small" in err
    assert "--model.groups=4" in err
    code, _, _ = run(*flags, "--model.groups=2", "--seed=0")
    assert code == 0
    assert json.loads((tmp_path / "out/measured.json").read_text())["seed"] == 0


@pytest.mark.usefixtures("quick_figures")
def test_where_the_initialisation_is_not_known_nothing_is_compared_with_it(run, tmp_path, weights, image_folder):
    run(*SMALL, f"--checkpoint={weights}", f"--data={image_folder}", f"--out={tmp_path}/out", *QUICK)
    assert "correlation_with_initialisation" not in set(table(tmp_path / "out")["measure"])
    assert "not known" in notes(tmp_path / "out")["correlation_with_initialisation"]


@pytest.mark.usefixtures("quick_figures")
def test_an_image_beside_the_class_folders_is_named_and_the_classes_stay(run, tmp_path, weights, image_folder):
    (image_folder / "val" / "stray.png").write_bytes(next(image_folder.rglob("*.png")).read_bytes())
    flags = [f"--checkpoint={weights}", f"--data={image_folder}", f"--out={tmp_path}/out"]
    code, out, err = run(*SMALL, *flags, *QUICK)
    assert code == 0
    assert err.count("\n") == 1
    assert "1 left out, an image outside the class folders: val/stray.png" in err
    assert "measuring small on 6 images of 2 class folders …" in out
    assert "accuracy " in out


CLASS_MEASURES = ["test_accuracy", "lesion", "probe_class"]


@pytest.mark.usefixtures("quick_figures")
def test_images_without_classes_leave_out_what_needs_them(run, tmp_path, weights, image_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(file.read_bytes())
    flags = [f"--checkpoint={weights}", f"--data={flat}", f"--out={tmp_path}/out", "--measures.permutations=20"]
    code, out, err = run(*SMALL, *flags, "--measures.draws=1")
    assert (code, err) == (0, "")
    measured = set(table(tmp_path / "out")["measure"])
    assert "ratio_computed" in measured
    assert not [measure for measure in measured if measure.startswith(tuple(CLASS_MEASURES))]
    assert not [measure for measure in measured if measure.startswith("training_")]
    said = notes(tmp_path / "out")
    assert [said[measure] for measure in CLASS_MEASURES] == ["the images are in no class folders"] * 3
    assert "no train/" in said["training_…"]
    assert "the images are in no class folders" in out
    assert "images …" in out


@pytest.mark.usefixtures("quick_figures")
def test_classes_that_the_network_does_not_tell_leave_out_what_needs_them(run, tmp_path, image_folder):
    torch.save(small(classes=5).state_dict(), tmp_path / "five.pth")
    flags = [f"--checkpoint={tmp_path}/five.pth", f"--data={image_folder}", f"--out={tmp_path}/out", *QUICK]
    code, _, _ = run(*SMALL, *flags)
    assert code == 0
    reason = "the network tells 5 classes, and the images are of 2 others"
    assert [notes(tmp_path / "out")[measure] for measure in CLASS_MEASURES] == [reason] * 3


def classifier(name, classes):
    torch.manual_seed(0)
    return import_torchvision().models.get_model(name, num_classes=classes)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("flags", "mean"),
    [
        ([], [123.675, 116.28, 103.53]),
        (["--normalise=imagenet"], [123.675, 116.28, 103.53]),
        (["--normalise=data"], None),
    ],
    ids=["by default", "ImageNet", "data"],
)
def test_a_network_of_torchvision_sees_images_as_its_weights_want_them(run, tmp_path, image_folder, flags, mean):
    torch.save(classifier("squeezenet1_1", 2).state_dict(), tmp_path / "net.pt")
    flags = [*flags, f"--checkpoint={tmp_path}/net.pt", f"--data={image_folder}", "--input_size=28", *QUICK]
    code, _, err = run("--model=squeezenet1_1", *flags)
    assert (code, err) == (0, "")
    folder = tmp_path / "here/measured/torchvision-squeezenet1_1-net"
    record = json.loads((folder / "measured.json").read_text())
    assert record["views"]["image_size"] == 32, "the weights show 224 of 256 pixels"
    assert record["mean"] == pytest.approx(mean or load_images(image_folder, 32, 6).mean.tolist())
    assert set(table(folder)["variant"]) == {"squeezenet1_1"}
    assert "test_accuracy" in set(table(folder)["measure"])


@pytest.mark.usefixtures("quick_figures")
def test_folders_with_the_names_of_the_outputs_of_torchvision_have_their_numbers(run, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("tench", "great_white_shark"):
        (tmp_path / "fish" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "fish" / name / f"{number}.png")
    network = classifier("squeezenet1_1", 1000).state_dict()
    network["classifier.1.bias"][0] = 1e4  # whatever it sees is class 0 of ImageNet: a tench
    torch.save(network, tmp_path / "net.pt")
    flags = [f"--checkpoint={tmp_path}/net.pt", f"--data={tmp_path}/fish", "--input_size=32", f"--out={tmp_path}/out"]
    code, _, _ = run("--model=squeezenet1_1", *flags, *QUICK)
    assert code == 0
    assert value(tmp_path / "out", "test_accuracy") == 0.5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_with_heads_that_only_training_has_fits_without_them(run, tmp_path):
    torch.save(classifier("googlenet", 3).state_dict(), tmp_path / "net.pt")
    # The images come after the weights: that they are missing says that the weights fit.
    code, _, err = run("--model=googlenet", f"--checkpoint={tmp_path}/net.pt", "--data=/nowhere", "--input_size=32")
    assert (code, err) == (2, "error: --data=/nowhere: there is no such folder\n")


@pytest.mark.usefixtures("quick_figures")
def test_measured_again_its_files_are_replaced_and_others_stay(run, tmp_path, weights, image_folder):
    flags = [*SMALL, f"--checkpoint={weights}", f"--data={image_folder}", f"--out={tmp_path}/out", *QUICK]
    run(*flags)
    (tmp_path / "out/figures/old.png").write_bytes(b"of another time")
    (tmp_path / "out/my-notes.txt").write_text("mine")
    code, _, err = run(*flags, "--images=4")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "out/measured.json").read_text())["images"] == 4
    assert [path.name for path in (tmp_path / "out/figures").iterdir()] == ["new.png"]
    assert (tmp_path / "out/my-notes.txt").read_text() == "mine"


def test_a_disk_that_fills_at_the_end_leaves_nothing(run, tmp_path, weights, image_folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "measured/x")

    monkeypatch.setattr(report, "draw_measured", full)
    code, _, err = run(*SMALL, f"--checkpoint={weights}", f"--data={image_folder}", *QUICK)
    assert (code, err) == (1, "error: measured/x: No space left on device; nothing was half-written\n")
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file() or path.name.startswith(".")]


def test_help_lists_the_flags_of_the_model_it_is_asked_about(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in (
        "--model=NAME",
        "--checkpoint",
        "--data",
        "--measures.draws",
        "--model.groups",
        "--normalise",
        "--out",
    ):
        assert word in out
    _, out, _ = run("--model=inception_v3", "--help")
    assert "--model.groups" not in out
    assert "default: 299" in out


WRONG = [
    ([], ["--model needs a name", "--model=alexnet"]),
    (["--model"], ["--model needs a name"]),
    (["--model="], ["measure: --model=: the value is missing"]),
    (["--model=alexnt"], ["--model=alexnt: no such model", "did you mean alexnet?"]),
    (["--model=resnet81"], ["--model=resnet81", "did you mean torchvision:resnet18?"]),
    (["--model=torchvision:resnet81"], ["--model=torchvision:resnet81", "did you mean torchvision:resnet18?"]),
    (["--model=qqqq"], ["no such model", "alexnet", "small", "torchvision"]),
    (["--model=small"], ["--checkpoint is missing"]),
    (["--model=small", "--checkpoint=mine.pth"], ["--data is missing"]),
    (["--model=small", "--chekpoint=x"], ["chekpoint", "did you mean checkpoint"]),
    ([*SMALL, "--model.grops=2"], ["model.grops", "did you mean model.groups"]),
    ([*SMALL, "--model.classes=10"], ["unknown key model.classes"]),
    ([*SMALL, "--measures.drawz=2"], ["measures.drawz", "did you mean measures.draws"]),
    ([*SMALL, "--measures.draws=-1"], ["measures.draws=-1: must be at least 0"]),
    ([*SMALL, "--images=0"], ["--images=0: must be at least 1"]),
    ([*SMALL, "--images=many"], ["images", "many"]),
    ([*SMALL, "--image_size=16"], ["--input_size=32: must be at most --image_size=16"]),
    ([*SMALL, "--input_size=2"], ["--input_size=2", "cannot take an input"]),
    ([*SMALL, "--normalise=imagnet"], ["normalise", "imagnet"]),
    ([*SMALL, "--device=cudda"], ["--device=cudda: not usable here"]),
    ([*SMALL, "--data=nowhere"], ["--data=nowhere: there is no such folder"]),
    ([*SMALL, "--checkpoint=nowhere.pt"], ["--checkpoint=nowhere.pt: there is no such file"]),
    ([*SMALL, "--checkpoint=DEFAULT"], ["--checkpoint=DEFAULT: there is no such file"]),
    (["--model=small", "--model.groups=5", "--model.width=8"], ["5 equal groups"]),
    (["--model=small", "--model.groups=4", "--model.width=8"], ["conv2.weight of 16 × 4 × 3 × 3", "16 × 2 × 3 × 3"]),
    (["--model=resnet18"], ["does not fit torchvision:resnet18", "lacks bn1.weight", "more", "of another model?"]),
    (["--model=resnet18", "--checkpoint=DEFALT"], ["DEFALT", "did you mean DEFAULT?", "IMAGENET1K_V1"]),
    ([*SMALL, "--out=../mine.pth"], ["--out=../mine.pth: is a file"]),
    ([*SMALL, "--out=../pictures"], ["--out=../pictures: holds files of something else"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_usage_is_one_line_and_exit_code_2(run, tmp_path, weights, image_folder, arguments, words):
    named = {argument.split("=")[0] for argument in arguments}
    given = (
        {"--checkpoint": weights, "--data": image_folder} if len(arguments) > 1 or "resnet18" in str(arguments) else {}
    )
    missing = any("is missing" in word for word in words)
    flags = [] if missing else [f"{key}={place}" for key, place in given.items() if key not in named]
    code, out, err = run(*arguments, *flags)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list((tmp_path / "here").iterdir()), "nothing is written"
