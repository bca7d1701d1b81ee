"""Folders of images as they come: with classes and splits, or without."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.data import datasets as data
from experiments.errors import UsageError
from experiments.foreign.images import load_images, standardised, with_outputs


def paint(place, value, side=8):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(place)


def values(images):
    return images.pixels.float().mean((1, 2, 3)).tolist()


def test_of_a_folder_with_splits_val_is_shown_and_train_gives_the_statistics(image_folder, tmp_path):
    dataset = load_images(image_folder, 16, 100)
    whole = data.load(f"folder:{image_folder}", 16, tmp_path)  # the reader of studies
    assert dataset.classes == ("cat", "dog")
    for split in ("test", "train"):
        assert torch.equal(getattr(dataset, split).pixels, getattr(whole, split).pixels)
        assert torch.equal(getattr(dataset, split).labels, getattr(whole, split).labels)
    assert torch.equal(dataset.mean, whole.mean)
    assert torch.equal(dataset.std, whole.std)


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_a_folder_of_one_split_shows_it_and_takes_the_statistics_from_it(image_folder, tmp_path, split):
    shutil.copytree(image_folder / "val", tmp_path / "one" / split)
    dataset = load_images(tmp_path / "one", 16, 100)
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train is dataset.test


def test_class_folders_alone_are_shown(image_folder):
    dataset = load_images(image_folder / "val", 16, 100)
    assert dataset.classes == ("cat", "dog")
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_in_no_folder_or_in_one_or_beside_folders_have_no_classes(tmp_path):
    for kind, names in {
        "flat": ["a.png", "b.png"],
        "one": ["cats/a.png", "cats/b.png"],
        "beside": ["cats/a.png", "dogs/b.png", "c.png", "d.png"],
    }.items():
        for number, name in enumerate(names):
            paint(tmp_path / kind / name, 10 * (number + 1))
        dataset = load_images(tmp_path / kind, 8, 100)
        assert dataset.classes == ()
        assert dataset.test.labels.tolist() == [0] * len(names)
        assert sorted(values(dataset.test)) == [10.0 * (number + 1) for number in range(len(names))]


def test_the_images_taken_are_evenly_spaced_over_the_classes(tmp_path):
    for number in range(12):
        paint(tmp_path / f"class{number // 6}" / f"{number:02}.png", 10 * number)
    dataset = load_images(tmp_path, 8, 4)
    assert values(dataset.test) == [0.0, 30.0, 60.0, 90.0]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]


def test_the_statistics_are_those_of_the_training_images(tmp_path):
    for split, (low, high) in {"train": (50, 150), "val": (0, 10)}.items():
        for name, value in (("a", low), ("b", high)):
            paint(tmp_path / split / name / "x.png", value)
    dataset = load_images(tmp_path, 8, 10)
    assert dataset.mean.tolist() == [100.0] * 3
    assert dataset.std.tolist() == [50.0] * 3


def test_standardised_takes_the_scale_of_pixels_from_0_to_1(tmp_path):
    paint(tmp_path / "a.png", 3)
    dataset = standardised(load_images(tmp_path, 8, 1), (0.5, 0.2, 0.0), (0.1, 1.0, 0.4))
    torch.testing.assert_close(dataset.mean, torch.tensor([127.5, 51.0, 0.0]))
    torch.testing.assert_close(dataset.std, torch.tensor([25.5, 255.0, 102.0]))


def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path, capsys):
    paint(tmp_path / "a.png", 3)
    (tmp_path / "b.png").write_bytes(b"no image")
    dataset = load_images(tmp_path, 8, 10)
    assert values(dataset.test) == [3.0]
    assert dataset.broken == (str(tmp_path / "b.png"),)
    said = "1 left out, an image that cannot be read: b.png (damaged, or no image)"
    assert capsys.readouterr().err == f"warning: {tmp_path}: {said}\n"


def test_a_folder_that_cannot_be_shown_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"--data=.*nowhere: there is no such folder"):
        load_images(tmp_path / "nowhere", 8, 1)
    with pytest.raises(UsageError, match=r"no image in .*\(looked for .*\.png"):
        load_images(tmp_path, 8, 1)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="none of the 1 images could be read"):
        load_images(tmp_path, 8, 1)


@pytest.fixture
def pets(image_folder):
    return load_images(image_folder, 8, 100)


def test_classes_of_known_names_are_numbered_as_the_outputs_are(pets):
    dataset = with_outputs(pets, 3, ["Dog", "great auk", "cat"])
    assert dataset.test.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert dataset.train.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert dataset.classes == ("Dog", "great auk", "cat")


def test_as_many_classes_as_outputs_are_numbered_in_the_order_of_their_names(pets):
    assert with_outputs(pets, 2, []) is pets
    assert with_outputs(pets, 2, ["tench", "great auk", "cat"]) is pets


def test_classes_that_the_network_does_not_tell_are_not_numbered(pets, tmp_path):
    assert with_outputs(pets, 3, []) is None
    assert with_outputs(pets, 3, ["tench", "great auk", "cat"]) is None
    assert with_outputs(pets, 3, ["dog", "cat", "cat"]) is None, "a name that two outputs have is no number"
    paint(tmp_path / "flat" / "a.png", 3)
    assert with_outputs(load_images(tmp_path / "flat", 8, 1), 1, []) is None
