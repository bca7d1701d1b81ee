import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.data import datasets as data
from experiments.data import photos
from experiments.errors import UsageError


@pytest.mark.parametrize("size", [32, 128])
def test_training_and_test_crops_share_no_pixel(size):
    for file in photos.photo_files():
        width, height = Image.open(file).size
        window = min(size, width // 3, height)
        train, test = (photos.stripes(width, window, split) for split in ("train", "test"))
        assert train
        assert test
        columns = [set(range(left, right)) for left, right in train + test]
        assert sum(map(len, columns)) == len(set().union(*columns)), file.name
        for split, stripes in (("train", train), ("test", test)):
            for left, top in photos._places(width, height, window, split, np.random.default_rng(0)):
                assert any(a <= left and left + window <= b for a, b in stripes)
                assert 0 <= top <= height - window


def test_the_photos_load_without_a_download_and_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "CROPS", {"train": 6, "test": 3})
    first = data.load("photos", 32, tmp_path)
    assert first.train.pixels.shape == (66, 32, 32, 3)
    assert first.test.pixels.shape == (33, 32, 32, 3)
    assert torch.bincount(first.train.labels).tolist() == [6] * 11
    shutil.rmtree(tmp_path / "cache")
    again = data.load("photos", 32, tmp_path)
    assert again.key == first.key
    assert torch.equal(again.train.pixels, first.train.pixels)


def test_a_folder_is_decoded_once_and_keyed_by_content(tmp_path, image_folder, monkeypatch):
    first = data.load(f"folder:{image_folder}", 16, tmp_path)
    assert first.classes == ("cat", "dog")
    assert first.train.pixels.shape == (6, 16, 16, 3)
    assert first.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    grey = first.train.pixels[1]
    assert torch.equal(grey[..., 0], grey[..., 2]), "a grey image becomes RGB"
    # The same content elsewhere has the same key; another size or other bytes have another.
    elsewhere = tmp_path / "copy"
    shutil.copytree(image_folder, elsewhere)
    decoded = []
    monkeypatch.setattr(data, "_decode", lambda *arguments: decoded.append(arguments))
    assert data.load(f"folder:{elsewhere}", 16, tmp_path).key == first.key
    assert not decoded
    monkeypatch.undo()
    assert data.load(f"folder:{image_folder}", 8, tmp_path).key != first.key
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(elsewhere / "train/cat/0.png")
    assert data.load(f"folder:{elsewhere}", 16, tmp_path).key != first.key


def test_another_set_of_classes_is_another_dataset(tmp_path, image_folder):
    first = data.load(f"folder:{image_folder}", 8, tmp_path)
    (image_folder / "train/cow").mkdir()
    second = data.load(f"folder:{image_folder}", 8, tmp_path)
    assert second.classes == ("cat", "cow", "dog")
    assert second.key != first.key
    assert second.train.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_decoding_a_square_keeps_every_pixel(tmp_path, image_folder):
    loaded = data.load(f"folder:{image_folder}", 20, tmp_path)
    original = np.asarray(Image.open(image_folder / "val/dog/0.png"))
    assert np.array_equal(loaded.test.pixels[3].numpy(), original)


def test_channel_statistics_are_those_of_the_training_images(tmp_path, image_folder):
    loaded = data.load(f"folder:{image_folder}", 16, tmp_path)
    pixels = loaded.train.pixels.double()
    torch.testing.assert_close(loaded.mean.double(), pixels.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.std.double(), pixels.std((0, 1, 2), correction=0), rtol=1e-5, atol=1e-5)


def test_a_test_folder_serves_as_val(tmp_path, image_folder):
    (image_folder / "val").rename(image_folder / "test")
    assert len(data.load(f"folder:{image_folder}", 8, tmp_path).test.labels) == 6


def test_broken_images_are_named_left_out_and_counted(tmp_path, image_folder, capsys):
    broken = image_folder / "train/cat/1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (image_folder / "train/dog/7.jpg").write_text("not an image")
    loaded = data.load(f"folder:{image_folder}", 8, tmp_path)
    assert len(loaded.train.labels) == 5
    assert sorted(loaded.broken) == [str(broken), str(image_folder / "train/dog/7.jpg")]
    said = capsys.readouterr().err
    assert said == (
        f"warning: {image_folder}: 2 left out, an image that cannot be read: "
        "train/cat/1.png (damaged, or no image), train/dog/7.jpg (damaged, or no image)\n"
    )


def _all_broken(folder):
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["there is no folder"]),
        (lambda folder: shutil.rmtree(folder / "train"), ["train/<class>/"]),
        (lambda folder: shutil.rmtree(folder / "val"), ["val/<class>/", "test/<class>/"]),
        (lambda folder: shutil.rmtree(folder / "train/dog"), ["1 class folders"]),
        (lambda folder: (folder / "val/dog").rename(folder / "val/cow"), ["cow", "train lacks"]),
        (lambda folder: [os.remove(f) for f in (folder / "val").rglob("*.png")], ["no image", ".png"]),
        (_all_broken, ["none of the 6 train images"]),
    ],
    ids=["missing", "no train", "no val", "one class", "another class", "empty", "all broken"],
)
def test_a_folder_that_cannot_serve_is_one_clear_line(tmp_path, image_folder, spoil, words):
    spoil(image_folder)
    with pytest.raises(UsageError) as error:
        data.load(f"folder:{image_folder}", 8, tmp_path / "data")
    for word in [f"dataset=folder:{image_folder}", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("cache/unfinished-*")), "nothing half-written stays"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("foto", ["foto", "did you mean photos"]),
        ("cifar", ["did you mean cifar10"]),
        ("folder:", ["folder:PATH"]),
        ("cifar10", ["not found", "--download=true"]),
        ("imagenette", ["not found", "--download=true"]),
    ],
)
def test_a_dataset_that_is_not_there_says_what_to_do(tmp_path, spec, words):
    with pytest.raises(UsageError) as error:
        data.load(spec, 32, tmp_path)
    for word in words:
        assert word in str(error.value)


def test_a_failed_download_is_one_clear_line(tmp_path, monkeypatch):
    from urllib.error import URLError

    def no_network(*_arguments, **_named):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    with pytest.raises(UsageError, match=r"dataset=cifar10: the download.*failed.*Name or service not known"):
        data.load("cifar10", 32, tmp_path, download=True)


def test_a_full_disk_is_told_before_decoding(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UsageError, match="0 are free"):
        data.load(f"folder:{image_folder}", 64, tmp_path)


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path):
    """The python version's files: pickled batches of rows of 3,072 bytes, channel after channel."""
    import hashlib
    import pickle

    import torchvision

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cifar = torchvision.datasets.CIFAR10
    sums = {}
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 255, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = pickle.dumps({"label_names": [f"class{k}" for k in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "train_list", [[f"data_batch_{k}", sums[f"data_batch_{k}"]] for k in range(1, 6)])
        patch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
        patch.setattr(cifar, "meta", {**cifar.meta, "md5": hashlib.md5(meta).hexdigest()})
        loaded = data.load("cifar10", 32, tmp_path)
    assert loaded.train.pixels.shape == (20, 32, 32, 3)
    assert loaded.test.labels.tolist() == [0, 1, 2, 3]
    row = pickle.loads((folder / "test_batch").read_bytes())["data"][2]
    assert np.array_equal(loaded.test.pixels[2].numpy(), row.reshape(3, 32, 32).transpose(1, 2, 0))
