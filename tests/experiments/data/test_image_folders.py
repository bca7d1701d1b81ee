"""Files of a folder that are taken and left out: the same for a study and for ``measure``, said once per load."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import datasets as data
from experiments.errors import UsageError
from experiments.foreign.images import load_images


def by_study(folder, tmp_path):
    return data.load(f"folder:{folder}", 8, tmp_path / "data")


def by_measure(folder, _tmp_path):
    return load_images(folder, 8, 1000)


readers = pytest.mark.parametrize("read", [by_study, by_measure])


def paint(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@readers
@pytest.mark.parametrize(
    "name",
    [".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN", "lost+found", "__macosx"],
)
def test_folders_of_programs_are_no_classes_and_not_read(tmp_path, image_folder, capsys, read, name):
    for split in ("train", "val"):
        paint(image_folder / split / name / "x.png")
        paint(image_folder / split / "cat" / name / "deep" / "x.png")
    dataset = read(image_folder, tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (6, 6)
    said = capsys.readouterr().err
    assert "4 left out, hidden, or left by another program: " in said
    assert f"train/cat/{name}" in said


@readers
def test_hidden_files_and_other_endings_are_counted(tmp_path, image_folder, capsys, read):
    cat = image_folder / "train" / "cat"
    (cat / "._0.png").write_bytes(b"\0\5\x16\7")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (cat / name).write_bytes(b"x")
    for name in ("a.txt", "b.txt", "c.mp4", "none"):
        (cat / name).write_bytes(b"x")
    (image_folder / "train" / "labels.csv").write_text("x")
    assert len(read(image_folder, tmp_path).train.labels) == 6
    said = capsys.readouterr().err
    assert "4 left out, hidden" in said
    assert "5 left out, no image by its ending (.txt: 2, " in said
    assert said.count("\n") == 2


@readers
def test_what_is_left_out_is_said_again_when_the_cache_is_hit_once_each(tmp_path, image_folder, capsys, read):
    (image_folder / "train/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    (image_folder / "train/cat/empty.png").write_bytes(b"")
    (image_folder / "val/dog/broken.jpg").write_bytes(b"no image")
    first = read(image_folder, tmp_path)
    said = capsys.readouterr().err
    again = read(image_folder, tmp_path)
    assert capsys.readouterr().err == said
    assert said.count("\n") == 1
    for words in ("3 left out, ", "gone.png (broken link)", "empty.png (an empty file)", "broken.jpg (damaged"):
        assert words in said
    assert len(first.broken) == len(again.broken) == 2


@readers
def test_linked_folders_are_followed_once_and_circles_are_left(tmp_path, image_folder, capsys, read):
    for number in range(4):
        paint(tmp_path / "more" / "inner" / f"{number}.png", number)
    (image_folder / "train/cat/more").symlink_to(tmp_path / "more")
    (image_folder / "train/cat/twice").symlink_to(tmp_path / "more" / "inner")
    (image_folder / "train/dog/circle").symlink_to(image_folder / "train/dog")
    (image_folder / "train/up").symlink_to(image_folder / "train")
    dataset = read(image_folder, tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0] * 7 + [1] * 3
    said = capsys.readouterr().err
    assert "3 left out, a linked folder whose images are read already" in said
    for name in ("train/dog/circle", "train/up"):
        assert name in said


@readers
def test_the_same_picture_in_training_and_test_is_counted(tmp_path, image_folder, capsys, read):
    shutil.copy(image_folder / "train/cat/0.png", image_folder / "val/dog/copy.png")
    (image_folder / "val/cat/link.png").symlink_to(image_folder / "train/cat/1.png")
    read(image_folder, tmp_path)
    capsys.readouterr()
    read(image_folder, tmp_path)  # now from the cache
    said = capsys.readouterr().err
    assert "2 images of val/ in train/ too" in said
    assert "val/dog/copy.png is train/cat/0.png" in said


@readers
def test_a_class_without_images_is_named(tmp_path, image_folder, capsys, read):
    (image_folder / "train/cow").mkdir()
    (image_folder / "train/cow/readme.txt").write_text("nothing yet")
    paint(image_folder / "train/bee/0.png")
    read(image_folder, tmp_path)
    said = capsys.readouterr().err
    assert "no image in train/ of 1 class: cow; " in said
    assert "no image in val/ of 2 classes: bee, cow; " in said


@readers
def test_an_image_beside_the_class_folders_is_left_out_and_the_classes_stay(tmp_path, image_folder, capsys, read):
    paint(image_folder / "val/stray.png")
    paint(image_folder / "train/stray.png", 3)
    dataset = read(image_folder, tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert "2 left out, an image outside the class folders: " in capsys.readouterr().err


@readers
def test_a_folder_with_the_name_of_an_image_and_a_pipe(tmp_path, image_folder, capsys, read):
    paint(image_folder / "train/cat/album.jpg/0.png")
    os.mkfifo(image_folder / "train/cat/pipe.png")
    assert read(image_folder, tmp_path).train.labels.tolist() == [0] * 4 + [1] * 3
    assert "pipe.png (no plain file)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@readers
def test_names_that_are_no_utf_8_are_read_and_shown(tmp_path, image_folder, capsys, read):
    for split in ("train", "val"):
        place = os.fsencode(image_folder / split) + b"/caf\xe9"
        os.mkdir(place)
        paint(tmp_path / "one.png", len(split))
        shutil.copy(tmp_path / "one.png", os.fsdecode(place + b"/\xff.png"))
        with open(place + b"/\xfe.txt", "w", encoding="utf-8"):
            pass
    dataset = read(image_folder, tmp_path)
    assert dataset.classes == (r"caf\xe9", "cat", "dog")
    assert r"train/caf\xe9/\xfe.txt" in capsys.readouterr().err
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (7, 7)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@readers
def test_a_file_without_permission_is_left_out(tmp_path, image_folder, capsys, read):
    (image_folder / "train/cat/0.png").chmod(0)
    assert len(read(image_folder, tmp_path).train.labels) == 5
    assert "0.png (permission denied)" in capsys.readouterr().err


def test_permission_is_asked_before_anything_is_read(tmp_path, image_folder, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "cat" not in str(path) or "1.png" not in str(path))
    assert len(by_study(image_folder, tmp_path).train.labels) == 5
    assert "2 left out, an image that cannot be read: train/cat/1.png (permission denied)" in capsys.readouterr().err


@readers
def test_classes_that_differ_in_case_alone_are_named(tmp_path, image_folder, capsys, read):
    paint(image_folder / "train/Cat/0.png", 1)
    paint(image_folder / "val/Cat/0.png", 2)
    assert read(image_folder, tmp_path).classes == ("Cat", "cat", "dog")
    assert "the classes Cat and cat differ in case" in capsys.readouterr().err


def test_a_class_written_otherwise_in_val_is_told(tmp_path, image_folder):
    (image_folder / "val/dog").rename(image_folder / "val/Dog")
    with pytest.raises(UsageError, match=r"train lacks: Dog \(dog in train is written otherwise\)"):
        by_study(image_folder, tmp_path)


def test_plain_images_keep_their_key_and_others_have_one_of_their_own(tmp_path, image_folder):
    """The key by the definition of the first rules: names and bytes, then size and version."""
    import hashlib

    def first_key():
        content = hashlib.sha256()
        for split in ("train", "val"):
            for file in sorted((image_folder / split).rglob("*.png")):
                content.update(f"{file.relative_to(image_folder)}\n".encode())
                content.update(file.read_bytes())
        return hashlib.sha256(f"{content.hexdigest()} 8 1".encode()).hexdigest()[:16]

    assert by_study(image_folder, tmp_path).key == first_key()
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(image_folder / "train/cat/0.png")
    assert by_study(image_folder, tmp_path).key != first_key()


def test_a_cache_of_the_first_rules_is_taken_and_its_broken_images_are_said(tmp_path, image_folder, capsys):
    import json

    from experiments.data.cache import write_index

    (image_folder / "train/cat/9.png").write_bytes(b"no image")
    before = by_study(image_folder, tmp_path)
    (folder,) = [path.parent for path in (tmp_path / "data/cache").glob("*/index.json")]
    index = json.loads((folder / "index.json").read_text())
    del index["unread"], index["checksums"]
    index["broken"] = [str(image_folder / "train/cat/9.png")]
    write_index(folder, index)
    capsys.readouterr()
    assert by_study(image_folder, tmp_path).broken == before.broken
    assert "1 left out, an image that cannot be read" in capsys.readouterr().err
