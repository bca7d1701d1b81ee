"""A damaged cache of decoded images is detected, reported, and made again as it was."""

import json
import os
import shutil

import pytest
import torch

from experiments.data import datasets as data


def load(image_folder, tmp_path):
    return data.load(f"folder:{image_folder}", 12, tmp_path / "data")


def the_cache(tmp_path):
    (index,) = tmp_path.glob("data/cache/*/index.json")
    return index.parent


def flip_a_pixel(folder):
    content = bytearray((folder / "train.u8").read_bytes())
    content[100] ^= 1
    (folder / "train.u8").write_bytes(content)


def cut_pixels(folder):
    content = (folder / "test.u8").read_bytes()
    (folder / "test.u8").write_bytes(content[:-1])


def lose_pixels(folder):
    (folder / "train.u8").unlink()


def change_a_label(folder):
    index = json.loads((folder / "index.json").read_text())
    index["labels"]["train"][0] = 1
    (folder / "index.json").write_text(json.dumps(index))


def cut_the_index(folder):
    content = (folder / "index.json").read_text()
    (folder / "index.json").write_text(content[:50])


def lose_the_index(folder):
    (folder / "index.json").unlink()


@pytest.mark.parametrize(
    "damage", [flip_a_pixel, cut_pixels, lose_pixels, change_a_label, cut_the_index, lose_the_index]
)
def test_damage_is_told_in_a_line_and_decoded_again(tmp_path, image_folder, capsys, damage):
    before = load(image_folder, tmp_path)
    pixels, labels, folder = before.train.pixels.clone(), before.train.labels, the_cache(tmp_path)
    damage(folder)
    after = load(image_folder, tmp_path)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{folder} is damaged" in err
    assert after.key == before.key, "the runs on it stay the same runs"
    assert torch.equal(after.train.pixels, pixels)
    assert torch.equal(after.train.labels, labels)
    assert torch.equal(after.mean, before.mean)
    assert [p.name for p in folder.parent.iterdir() if p.name not in (folder.name, "digests")] == []
    load(image_folder, tmp_path)
    assert not capsys.readouterr().err


def test_a_cache_from_before_there_were_checksums_is_taken_as_it_is(tmp_path, image_folder, capsys):
    before = load(image_folder, tmp_path)
    folder = the_cache(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    del index["checksums"]
    (folder / "index.json").write_text(json.dumps(index))
    assert torch.equal(load(image_folder, tmp_path).train.pixels, before.train.pixels)
    assert not capsys.readouterr().err
    cut_pixels(folder)
    load(image_folder, tmp_path)
    assert "test.u8 has" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage", [lambda t: t[:30], lambda t: "0" + t[1:] if t[0] != "0" else "1" + t[1:], lambda _: "\0"]
)
def test_a_damaged_memory_of_a_digest_makes_no_other_dataset(tmp_path, image_folder, damage):
    before = load(image_folder, tmp_path)
    (memory,) = tmp_path.glob("data/cache/digests/*")
    memory.write_text(damage(memory.read_text()))
    assert load(image_folder, tmp_path).key == before.key


def test_files_that_a_process_of_the_same_number_writes_on_another_machine_are_left_alone(tmp_path, image_folder):
    before = load(image_folder, tmp_path)
    folder = the_cache(tmp_path)
    (memory,) = tmp_path.glob("data/cache/digests/*")
    shutil.rmtree(folder)
    memory.unlink()
    others = [folder.with_name(f"unfinished-{os.getpid()}-{folder.name}"), memory.with_suffix(f".{os.getpid()}")]
    others[0].mkdir()
    others[1].write_text("half")
    assert load(image_folder, tmp_path).key == before.key
    assert others[0].is_dir()
    assert others[1].read_text() == "half"
