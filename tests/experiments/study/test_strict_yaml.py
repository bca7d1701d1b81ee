"""Duplicate keys, merge keys, and the names that messages give a file."""

from pathlib import Path

import pytest
import yaml

from experiments.errors import UsageError
from experiments.study.catalogue import CONFIGS
from experiments.study.strict_yaml import place_of, read_yaml


def read(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    return read_yaml(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", 1),
        ("recipe:\n  lr: 1\n  epochs: 2\nrecipe.epochs: 3\n", 4, "recipe.epochs", 3),
        ("data.views.size: 3\ndata:\n  views: {size: 4}\n", 3, "data.views.size", 1),
        ("data:\n  views.size: 4\n  views:\n    size: 5\n", 4, "data.views.size", 2),
        ("model: {name: x}\nseeds: 1\nmodel: {groups: 2}\n", 3, "model", 1),
        (
            "variants:\n  a: {model.groups: 2}\n  b:\n    model.groups: 2\n    model: {groups: 4}\n",
            5,
            "variants.b.model.groups",
            4,
        ),
        ("claims:\n  - {tests: 1}\n  - tests: 1\n    tests: 2\n", 4, "tests", 3),
        ("1: a\n'1': b\n", 2, "1", 1),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  <<: *x\n", 4, "<<", 3),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path, text, line, key, first):
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert f"study.yaml, line {line}: the key " in str(error.value)
    assert str(error.value).endswith(f"{key} is given twice, first in line {first}")


@pytest.mark.parametrize(
    "text",
    [
        "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n",
        "a: &one {x: 1, y: 1}\nb: &two {y: 2, z: 2}\nc:\n  z: 0\n  <<: [*one, *two]\n",
        "a: &one {x: 1}\nb: &two\n  <<: *one\n  y: 2\nc:\n  <<: *two\n",
        "a: &list [1, 2]\nb: *list\n",
        "a: &base {deep: {x: 1, y: 2}}\nb:\n  <<: *base\n  deep: {x: 3}\n",
    ],
)
def test_merge_keys_and_anchors_are_read_as_pyyaml_reads_them(tmp_path, text):
    assert read(tmp_path, text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b:\n  <<: 3\n", "line 2: << takes a mapping"),
        ("a: &x [1]\nb:\n  <<: *x\n", "<< takes a mapping"),
        ("a: &x\n  b: *x\n", "recursive"),
        ("a: &x\n  <<: *x\n", "recursive"),
        ("b:\n  <<: *nowhere\n", "undefined alias"),
        ("[a, b]: 1\n", "cannot be a key"),
    ],
)
def test_what_cannot_be_merged_is_one_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_file_is_named_as_it_was_given_and_the_projects_own_from_the_project(tmp_path):
    assert place_of(Path("nope.yaml")) == "nope.yaml"
    assert place_of(Path("../other/nope.yaml")) == "../other/nope.yaml"
    assert place_of(tmp_path / "nope.yaml") == f"{tmp_path}/nope.yaml"
    assert place_of(CONFIGS / "sweeps" / "photos-bayes.yaml") == "configs/sweeps/photos-bayes.yaml"
    with pytest.raises(UsageError, match=r"^nowhere/nope\.yaml: cannot be read: No such file"):
        read_yaml(Path("nowhere/nope.yaml"))
