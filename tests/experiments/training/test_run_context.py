from dataclasses import replace

import pytest
import torch

from experiments.data.augment import Views
from experiments.errors import UsageError
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext, choose_device, choose_dtype
from tiny_images import tiny_dataset


def context(**recipe):
    recipe = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "fp32", **recipe}
    return RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), Recipe(**recipe))


def with_permuted_labels(**recipe):
    return replace(context(**recipe), views=Views(image_size=12, crop_size=12, labels="permuted"))


def test_permuted_labels_keep_images_class_counts_and_the_test_set():
    given = with_permuted_labels()
    before = given.dataset.train.labels.clone()
    for seed in range(10):
        after = given.with_labels(seed).dataset
        assert after.train.labels.bincount().tolist() == [12, 12]
        assert not torch.equal(after.train.labels, before)
        assert after.train.pixels is given.dataset.train.pixels
        assert after.test is given.dataset.test
        assert torch.equal(given.dataset.train.labels, before), "the dataset is shared with other runs"


def test_permuted_labels_tell_nothing_about_the_stored_ones():
    """Over many seeds an image keeps its class at the rate of chance, 12 labels of its class in 24 places."""
    given = with_permuted_labels()
    stored = given.dataset.train.labels
    kept = torch.stack([given.with_labels(seed).dataset.train.labels == stored for seed in range(400)]).float()
    assert kept.mean().item() == pytest.approx(0.5, abs=0.02)  # standard error 0.005
    assert (kept.mean(0) - 0.5).abs().max().item() < 0.125  # of one image 0.025


def test_a_seed_has_its_labels_and_another_seed_others_whatever_was_drawn_before():
    given = with_permuted_labels()
    first = given.with_labels(1).dataset.train.labels
    torch.rand(7)
    assert torch.equal(first, given.with_labels(1).dataset.train.labels)
    assert not torch.equal(first, given.with_labels(2).dataset.train.labels)


def test_stored_labels_are_trained_on_as_they_are():
    given = context()
    assert given.with_labels(3) is given


def test_bf16_is_only_chosen_where_the_hardware_multiplies_it(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert choose_dtype("auto", cpu) == expected
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:x"])
def test_a_device_that_is_not_here_is_one_clear_line(name):
    with pytest.raises(UsageError, match=f"recipe.device={name}") as error:
        choose_device(name)
    assert "\n" not in str(error.value)


def test_steps_are_compiled_by_themselves_only_where_that_pays(monkeypatch):
    short = context()
    assert not short.with_compiler("auto").compiled
    assert not replace(short, recipe=Recipe(epochs=10**6, device="cpu")).with_compiler("auto").compiled
    on_gpu = replace(short, device=torch.device("cuda"))
    assert not on_gpu.with_compiler("auto").compiled
    long = replace(on_gpu, recipe=Recipe(epochs=10**6))
    monkeypatch.setattr("experiments.training.run_context.find_spec", lambda _: object())
    assert long.with_compiler("auto").compiled
    assert not long.with_compiler("never").compiled
    monkeypatch.setattr("experiments.training.run_context.find_spec", lambda _: None)
    assert not long.with_compiler("auto").compiled
