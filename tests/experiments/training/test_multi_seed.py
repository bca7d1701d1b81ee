"""Several seeds in lock-step on the CPU: each run leaves what it leaves alone, within ``TOLERANCE``."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from experiments.data.augment import Views
from experiments.errors import RunFailedError
from experiments.models import build_model
from experiments.store import leases, stop_signal
from experiments.store.leases import LeaseLostError
from experiments.store.lockstep import steps_trained
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.recipe import Recipe
from experiments.training.run import train_run, train_seeds
from experiments.training.run_context import RunContext
from experiments.training.wide_network import WideNetwork
from fault_children import SILENT
from tiny_images import tiny_dataset

TOLERANCE = 1e-4  # of every metric after 20 steps in fp32, on the CPU


METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")


LOGNET = ("lognet", {"groups": "log:4", "width": 8})


NETS = {
    "log groups, batch norm, shortcuts": LOGNET,
    "uneven groups": ("lognet", {"groups": "~3", "width": 16}),
    "channel shuffle": ("shufflenet", {"groups": 2, "width": 32, "stem": "cifar"}),
    "depthwise": ("mobilenet", {"multiplier": 0.125, "stem": "cifar"}),
}


pytestmark = pytest.mark.usefixtures("one_thread", "shallow")


def context(labels="stored", **recipe):
    """Five steps in an epoch."""
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.02, "device": "cpu", "precision": "fp32", **recipe}
    views = Views(image_size=16, crop_size=12, cutout=2, labels=labels)
    return RunContext.of(tiny_dataset(16, train=80), views, Recipe(**recipe))


def fresh(seed, net=LOGNET):
    torch.manual_seed(seed)
    return build_model(net[0], 12, classes=2, **net[1])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Four seeds, each trained alone."""
    torch.set_num_threads(1)
    return alone(tmp_path_factory.mktemp("alone"), context(), seeds=4)


def runs_in(folder, seeds=3):
    return [Run.of(folder, "tiny", {"seed": seed, "data": "tiny"}) for seed in range(seeds)]


def at_once(runs, given, trackers=None, net=LOGNET):
    makers = [partial(fresh, run.seed, net) for run in runs]
    return train_seeds(runs, makers, given, trackers or [SILENT] * len(runs))


def alone(folder, given, seeds=3, net=LOGNET):
    runs = runs_in(folder, seeds)
    for run in runs:
        train_run(run, fresh(run.seed, net), given, SILENT)
    return runs


def assert_alike(runs, others, exactly=False):
    """Metrics of every epoch, weights and running statistics."""
    for run, other in zip(runs, others, strict=True):
        epochs, known = run.metrics(), other.metrics()
        assert [e["epoch"] for e in epochs] == [e["epoch"] for e in known]
        for epoch, expected in zip(epochs, known, strict=True):
            for name in METRICS:
                difference = abs(epoch[name] - expected[name])
                assert difference <= (0 if exactly else TOLERANCE), (run.seed, epoch["epoch"], name, difference)
        state, expected = (r.load_checkpoint()["model"] for r in (run, other))
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert torch.allclose(value, expected[name], rtol=1e-3, atol=0 if exactly else 1e-4), name


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=[pytest.mark.slow] if net == "depthwise" else []) for net in NETS]
)
def test_twenty_steps_at_once_are_those_alone(net, tmp_path):
    given = context(epochs=4)
    assert given.steps == 20
    runs = runs_in(tmp_path / "at once")
    ends = at_once(runs, given, net=NETS[net])
    known = alone(tmp_path / "alone", given, net=NETS[net])
    assert_alike(runs, known)
    assert all(isinstance(end, dict) and end["epoch"] == 4 for end in ends)
    assert len({end["test_loss"] for end in ends}) == 3, "seeds differ"


def test_every_seed_has_its_own_permuted_labels(tmp_path):
    given = context("permuted")
    runs = runs_in(tmp_path / "at once")
    at_once(runs, given)
    assert_alike(runs, alone(tmp_path / "alone", given))


def test_a_checkpoint_is_what_the_run_alone_would_have_saved(tmp_path, known):
    runs = runs_in(tmp_path / "at once")
    at_once(runs, context())
    for run, other in zip(runs, known, strict=False):
        checkpoint, expected = run.load_checkpoint(), other.load_checkpoint()
        assert checkpoint.keys() == expected.keys()
        assert checkpoint["schedule"] == expected["schedule"]
        assert checkpoint["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
        for number, of in expected["optimizer"]["state"].items():
            mine = checkpoint["optimizer"]["state"][number]
            assert torch.allclose(mine["momentum_buffer"], of["momentum_buffer"], rtol=1e-3, atol=1e-4)
        size = sum(v.untyped_storage().nbytes() for v in checkpoint["model"].values())
        assert size == sum(v.untyped_storage().nbytes() for v in expected["model"].values()), "not those of the others"


class Stops(Tracker):
    """Gives notice to stop at a look at the loss."""

    def __init__(self, at):
        super().__init__("off", "", "", "", {}, None)  # type: ignore[arg-type]
        self.at = at

    def log_step(self, step, metrics):
        if step >= self.at:
            stop_signal._handle(2, None)


def test_on_notice_all_are_saved_at_the_same_step_and_go_on_to_the_same_bits(tmp_path):
    given = context()
    straight, runs = runs_in(tmp_path / "straight"), runs_in(tmp_path / "stopped")
    at_once(straight, given)
    with pytest.raises(KeyboardInterrupt):
        at_once(runs, given, [Stops(6), SILENT, SILENT])
    assert {steps_trained(run) for run in runs} == {(1, 2)}
    at_once(runs, given)
    assert_alike(runs, straight, exactly=True)


@pytest.mark.parametrize("first", ["at once", "alone"])
def test_what_was_begun_at_once_goes_on_alone_and_the_reverse(first, tmp_path, known):
    given, runs = context(), runs_in(tmp_path / "stopped")
    if first == "at once":
        with pytest.raises(KeyboardInterrupt):
            at_once(runs, given, [SILENT, Stops(6), SILENT])
        for run in runs:
            train_run(run, fresh(run.seed), given, SILENT)
    else:
        for run in runs:
            with pytest.raises(KeyboardInterrupt):
                train_run(run, fresh(run.seed), given, Stops(6))
        at_once(runs, given)
    assert_alike(runs, known[:3])


def test_what_is_not_equally_far_is_trained_in_turn(tmp_path, monkeypatch, known):
    given, counts, runs = context(), [], runs_in(tmp_path / "at once")
    with pytest.raises(KeyboardInterrupt):
        train_run(runs[0], fresh(0), given, Stops(6))
    built = WideNetwork.__init__
    monkeypatch.setattr(WideNetwork, "__init__", lambda self, nets: (counts.append(len(nets)), built(self, nets))[1])
    at_once(runs, given)
    assert counts == [2]
    assert_alike(runs, known[:3])


def test_one_that_diverges_is_told_and_the_others_go_on_as_if_it_had_not_been_there(tmp_path, monkeypatch, known):
    """The labels of seed 1 break in its second epoch, wherever it is trained."""
    given = context()
    inputs = RunContext.training_inputs

    def breaks(self, index, generator, share=slice(None)):
        x, y = inputs(self, index, generator, share)
        return (x * float("nan") if generator.initial_seed() == 1_000_003 + 1 else x), y

    monkeypatch.setattr(RunContext, "training_inputs", breaks)
    runs = runs_in(tmp_path / "at once")
    ends = at_once(runs, given)
    assert isinstance(ends[1], RunFailedError) and ends[1].lasting
    assert "the loss became nan in epoch 2, step 1" in str(ends[1])
    assert_alike([runs[0], runs[2]], [known[0], known[2]])


def test_a_lost_lease_of_one_does_not_harm_the_others(tmp_path, known):
    runs = runs_in(tmp_path / "at once")

    class Robs(Tracker):
        def log_step(self, step, metrics):
            if step == 6:
                (runs[1].folder / "lease-2.json").touch()

    held = [replace(run, lease=leases.claim(run.folder)) for run in runs]
    ends = at_once(held, context(), [Robs("off", "", "", "", {}, None), SILENT, SILENT])  # type: ignore[arg-type]
    for run in held:
        run.lease.release()
    assert isinstance(ends[1], LeaseLostError)
    assert [e["epoch"] for e in runs[1].metrics()] == [1], "nothing was written after the loss"
    assert_alike([runs[0], runs[2]], [known[0], known[2]])


def test_where_memory_is_short_half_as_many_go_on(tmp_path, monkeypatch, capsys, known):
    forward, counts = WideNetwork.forward, []

    def narrow(self, xs):
        counts.append(len(xs))
        if len(xs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, xs)

    monkeypatch.setattr(WideNetwork, "forward", narrow)
    runs = runs_in(tmp_path / "at once", seeds=4)
    at_once(runs, context())
    assert counts == [4, *[2] * 20]
    assert "out of memory on cpu with 4 seeds at once; going on with 2" in capsys.readouterr().err
    assert_alike(runs, known)


def test_networks_are_seen_as_they_are_without_copies():
    given = context()
    stack = MultiSeedLearner([fresh(seed) for seed in range(2)], given, 20)
    before = [network.get_parameter("classify.weight").clone() for network in stack.networks]
    x = torch.randn(4, 3, 12, 12)
    stack.step([(x, torch.zeros(4, dtype=torch.long))] * 2)
    for network, old in zip(stack.networks, before, strict=True):
        assert not torch.equal(network.get_parameter("classify.weight"), old)
    assert len({n.get_parameter("classify.weight").untyped_storage().data_ptr() for n in stack.networks}) == 1


def test_only_weights_decay():
    given = context(weight_decay=0.01)
    stack, learner = MultiSeedLearner([fresh(0), fresh(1)], given, 20), Learner(fresh(0), given, 20)
    for group, known in zip(stack._optimizer.param_groups, learner._optimizer.param_groups, strict=True):
        assert group["weight_decay"] == known["weight_decay"]
        assert [len(p) for p in group["params"]] == [2 * len(p) for p in known["params"]]
