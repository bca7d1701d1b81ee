import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from experiments.errors import UsageError
from experiments.store.runs import config_hash
from experiments.study import catalogue
from experiments.study.config import load_study, resolve, study_help
from experiments.study.strict_yaml import read_yaml

CONTENT = {
    "question": "What?",
    "model": {"name": "small"},
    "recipe": {"epochs": 2},
    "seeds": 2,
    "variants": {"dense": {"model.groups": 1}, "log-4": {"model.groups": "log:4"}},
}

GROUPS = {"dense": {"model.groups": 1}}


def study(*flags, **changes):
    return resolve("example", {**CONTENT, **changes}, "configs/example.yaml", list(flags))


def test_variants_override_the_study_and_flags_override_both():
    resolved = study("--recipe.lr=1e-3", "--seeds", "1", "--data.crop_size=28", "--model.width=64")
    assert [v.name for v in resolved.variants] == ["dense", "log-4"]
    assert [v.model["groups"] for v in resolved.variants] == [1, "log:4"]
    assert {v.model["width"] for v in resolved.variants} == {64}
    assert {(v.recipe.lr, v.recipe.epochs, v.views.crop_size) for v in resolved.variants} == {(1e-3, 2, 28)}
    assert resolved.seeds == 1


def test_a_flag_for_what_the_variants_differ_in_replaces_them():
    resolved = study("--model.groups=8", "--recipe.lr=0.2")
    assert [v.name for v in resolved.variants] == ["model.groups=8"]
    assert resolved.variants[0].model["groups"] == 8


def test_variants_may_be_written_nested_and_name_their_own_model():
    resolved = study(
        model={},
        variants={"a": {"model": {"name": "small", "groups": 2}}, "b": {"model.name": "alexnet", "model.norm": "none"}},
    )
    assert [v.model["name"] for v in resolved.variants] == ["small", "alexnet"]
    assert resolved.variants[0].model["groups"] == 2
    assert resolved.variants[1].model["norm"] == "none"


def test_overrides_of_the_study_are_remembered_and_places_are_not():
    resolved = study("--recipe.lr=0.2", "--runs_root=/somewhere", "--wandb=off")
    assert resolved.overrides == {"recipe.lr": 0.2}


def test_labels_are_part_of_a_run_only_where_they_are_permuted():
    """The key came after the first runs, whose hash has to stay."""
    (stored,), (same,), (permuted,) = (
        study("--model.groups=2", *flags).variants
        for flags in ([], ["--data.labels=stored"], ["--data.labels=permuted"])
    )
    before_the_key = {"image_size": 32, "crop_size": 32, "padding": 0, "flip": True, "cutout": 0, "colour": "colour"}
    assert stored.run_config("key", 0)["views"] == same.run_config("key", 0)["views"] == before_the_key
    assert permuted.run_config("key", 0)["views"] == {**before_the_key, "labels": "permuted"}


def test_only_picks_variants():
    assert [v.name for v in study("--only=log-4").variants] == ["log-4"]
    with pytest.raises(UsageError, match=r"no variant logg.*dense, log-4"):
        study("--only=logg")


def test_every_shipped_study_resolves_and_its_head_is_complete():
    for name in catalogue.trained_studies():
        resolved = load_study(name)
        assert resolved.question
        head = catalogue.study_file(name).read_text().split("\nquestion:")[0]
        for part in ("# Question:", "# Command:", "# Time:", "# Result:"):
            assert part in head, f"{name} lacks {part}"
        assert f"make experiment NAME={name}" in head


@pytest.mark.parametrize(
    ("flags", "changes", "words"),
    [
        (["--recipe.lrr=1"], {}, ["command line", "recipe.lrr", "did you mean recipe.lr"]),
        (["--recipe.lr=fast"], {}, ["command line", "recipe.lr", "number", "fast"]),
        (["--seeds=two"], {}, ["seeds", "whole number", "two"]),
        (["--seeds=0"], {}, ["seeds=0", "from 1 to"]),
        (["--seeds=99999999999999999999"], {}, ["seeds=99999999999999999999", "to 10000"]),
        (["--recipe.epochs=0"], {}, ["recipe.epochs=0", "at least 1"]),
        (["--recipe.lr=-1"], {}, ["recipe.lr=-1", "above 0"]),
        (["--data.colour=gray"], {}, ["data.colour", "gray", "grey"]),
        (["--data.labels=random"], {}, ["data.labels", "random", "permuted"]),
        (["--data.crop_size=64"], {}, ["data.crop_size=64", "data.image_size=32"]),
        (["--wandb=maybe"], {}, ["wandb", "maybe", "offline"]),
        (["--model.name=smal"], {}, ["smal", "did you mean small"]),
        (["--model.depth=3"], {}, ["model.depth"]),
        (["--see=2"], {}, ["unknown key see", "seeds"]),
        (["--only=dense", "--model.groups=2"], {}, ["--only=dense", "--model.groups"]),
        (["--recipe.lr=1e400"], {}, ["recipe.lr", "inf"]),
        (["--seeds_at_once=0"], {}, ["seeds_at_once=0", "auto or at least 1"]),
        (["--seeds_at_once=3", "--on=ray"], {}, ["seeds_at_once=3", "on=ray"]),
        ([], {"only": "dense"}, ["only", "--only"]),
        ([], {"seeds": None}, ["seeds"]),
        ([], {"model": {"name": ["small"]}}, ["model.name"]),
        (["--seeds=0"], {}, ["command line: seeds=0"]),
        ([], {"seeds": 0}, ["example.yaml: seeds=0"]),
        ([], {"variants": {"": {"model.groups": 2}}}, ["variants: '' is no name"]),
        ([], {"variants": {"a": None}}, ["variants.a: None: must hold overrides such as {model.groups: 2}, or be {}"]),
        ([], {"variants": {"a": {"seeds": 3}}}, ["variants.a", "seeds is not a variant's"]),
        ([], {"recepe": {"lr": 1}}, ["configs/example.yaml", "recepe", "did you mean recipe"]),
        ([], {"recipe": {"lr": "high"}}, ["configs/example.yaml", "recipe.lr", "high"]),
        ([], {"recipe": 3}, ["configs/example.yaml", "recipe"]),
        ([], {"variants": {"a": {"model.group": 2}}}, ["variants.a", "model.group", "did you mean model.groups"]),
        ([], {"variants": ["dense"]}, ["variants", "names to overrides"]),
        ([], {"model": {}}, ["model.name is missing"]),
        ([], {"measures": {"images": 0}}, ["measures.images=0"]),
        ([], {"seeds": "three", "variants": GROUPS}, ["example.yaml: seeds=three"]),
        ([], {"recipe": {"epoch": 3}, "variants": GROUPS}, ["example.yaml: unknown key recipe.epoch"]),
        ([], {"variants": {"a": {"recipe.epoch": 3}}}, ["example.yaml: variants.a: unknown key recipe.epoch"]),
        ([], {"variant": GROUPS}, ["unknown key variant; did you mean variants?"]),
        ([], {"variants": {"a": {"model.groups": True}}}, ["model.groups=True", "or text or a list of whole numbers"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_key_or_value_is_one_line_with_its_place(flags, changes, words):
    with pytest.raises(UsageError) as error:
        study(*flags, **changes)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("question: a\nrecipe:\n  lr: 0.1\n  lr: 0.2\n")
    with pytest.raises(UsageError, match=r"line 4.*lr is given twice"):
        read_yaml(path)


def test_broken_yaml_and_empty_files_are_one_line(tmp_path):
    for text in (b"a: [1", b"", b"- 1\n", b"a: \xff", b"{[1]: 2}", b"a: 1\n1: 2\n'1': 3\n"):
        path = tmp_path / "broken.yaml"
        path.write_bytes(text)
        with pytest.raises(UsageError) as error:
            read_yaml(path)
        assert "\n" not in str(error.value)


def test_scientific_notation_is_a_number(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text("a: 1e-4\nb: 2.5e3\nc: .5e1\nd: 12\ne: log:4\nf: 4:2:1:1\ng: 1:30\nh: 2026-11-20\ni: -3\n")
    expected = {"a": 1e-4, "b": 2500.0, "c": 5.0, "d": 12, "e": "log:4", "f": "4:2:1:1", "g": "1:30"}
    assert read_yaml(path) == {**expected, "h": "2026-11-20", "i": -3}


@pytest.mark.parametrize("groups", ["4:2:1:1", "log:4", "16,8,4,4", "1:1"])
def test_groups_reach_the_model_as_they_are_written(groups):
    (variant,) = study(f"--model.groups={groups}").variants
    assert variant.model["groups"] == groups


def test_help_names_every_key_of_the_model():
    text = study_help("quickstart")
    for key in ("--recipe.lr", "--model.groups", "--model.width", "--data.colour", "--only", "--wandb"):
        assert key in text


def test_listing_loads_neither_torch_nor_pandas(tmp_path):
    """Nothing was run yet, as when anyone begins; counting runs takes the whole configuration."""
    program = textwrap.dedent(
        """
        import sys
        from experiments.__main__ import main
        main(["list", "--json"])
        assert not {"torch", "numpy", "pandas", "jsonargparse"} & set(sys.modules), "heavy import"
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = [entry["name"] for entry in yaml.safe_load(done.stdout)]
    assert names == catalogue.study_names()


@pytest.mark.parametrize(
    ("name", "hashes"),
    {
        "alexnet-groups": ["f9f9c8a8", "30bcc279", "b690f400"],
        "quickstart": ["eace0f5d", "f92c8dd6", "66b7f21b"],
        "log-groups": ["4e2f00c5", "628c7227", "4fa4ea7a"],
        "nin-roots": ["ee3feccc", "c024688d", "33f3db5e"],
    }.items(),
)
def test_a_runs_hash_does_not_move(name, hashes):
    """Hashes as they were at commit a9ecd47: folders of runs made then go on."""
    computed = [config_hash(v.run_config("key", 0)) for v in load_study(name).variants]
    assert computed[:3] == hashes


PROFILED = """
question: "?"
dataset: imagenette
model: {name: small}
recipe: {epochs: 9}
seeds: 4
profiles:
  cpu: {data: {image_size: 64, crop_size: 64}, recipe.epochs: 2, seeds: 6}
variants:
  dense: {model.groups: 1}
  long: {model.groups: 2, recipe.epochs: 5}
"""


def profiled(*flags, text=PROFILED):
    return resolve("profiled", yaml.safe_load(text), "configs/profiled.yaml", list(flags))


def test_a_profile_goes_before_the_file_and_behind_variants_and_flags():
    whole, cpu, flagged = profiled(), profiled("--profile=cpu"), profiled("--profile=cpu", "--recipe.epochs=3")
    assert [v.recipe.epochs for v in whole.variants] == [9, 5]
    assert [v.recipe.epochs for v in cpu.variants] == [2, 5]
    assert [v.recipe.epochs for v in flagged.variants] == [3]
    assert (whole.seeds, cpu.seeds) == (4, 6)
    assert cpu.variants[0].views.crop_size == 64
    assert (whole.overrides, cpu.overrides) == ({}, {"profile": "cpu"})


@pytest.mark.parametrize(
    ("flags", "text", "words"),
    [
        (["--profile=gpu"], PROFILED, ["--profile=gpu", "there are: cpu"]),
        ([], PROFILED.replace("seeds: 6", "runs_root: x"), ["profiles.cpu: runs_root", "recipe.*"]),
        ([], PROFILED.replace("seeds: 4", "profile: cpu"), ["unknown key profile", "--profile="]),
        (
            [],
            PROFILED.replace("{data: {image_size: 64, crop_size: 64}, recipe.epochs: 2, seeds: 6}", "3"),
            ["profiles.cpu: 3: must hold overrides"],
        ),
    ],
    ids=["unknown", "of the machine", "in the file", "no mapping"],
)
def test_a_profile_that_is_none_is_one_line(flags, text, words):
    with pytest.raises(UsageError) as error:
        profiled(*flags, text=text)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", catalogue.trained_studies())
def test_every_shipped_profile_is_a_study(name):
    for profile in read_yaml(catalogue.study_file(name)).get("profiles", {}):
        study = load_study(name, [f"--profile={profile}"])
        assert study.variants and study.overrides == {"profile": profile}
