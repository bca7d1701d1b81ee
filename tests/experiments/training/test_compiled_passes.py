import pytest
import torch

from experiments.data.augment import Views
from experiments.models import build_model
from experiments.training import compiled_passes
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
from experiments.training.run_context import RunContext
from fault_children import SILENT
from small_training import a_run
from tiny_images import tiny_dataset


def context(**recipe):
    recipe = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "fp32", **recipe}
    return RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), Recipe(**recipe))


def taken(takes, given, seeds, steps=3):
    streams = [EpochBatches(given, seed, 0) for seed in seeds]
    takes.begin_epoch()
    return torch.stack([takes.step([s.batch(k, SINGLE_PROCESS) for s in streams]) for k in range(1, steps + 1)])


def network(seed):
    torch.manual_seed(seed)
    return build_model("small", classes=2, groups="log:3", width=8)


def test_compiled_steps_are_those_that_are_not(monkeypatch):
    """Traced as for a GPU; what Inductor makes of it is tested with the operator, and where there is a GPU."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": "aot_eager", "dynamic": False})
    given = context(precision="fp32", device="auto")
    compiled = given.with_compiler("always")
    assert compiled.compiled and not given.compiled
    alone = [taken(Learner(network(seed), given, 9), given, [seed]) for seed in (0, 1)]
    torch.testing.assert_close(taken(Learner(network(0), compiled, 9), compiled, [0]), alone[0], rtol=1e-4, atol=1e-5)
    both = taken(MultiSeedLearner([network(0), network(1)], compiled, 9), compiled, [0, 1])
    torch.testing.assert_close(both, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_compiled_step_that_fails_is_taken_again_in_eager_mode_and_the_run_says_why(
    tmp_path, monkeypatch, capsys, when
):
    """The planted failure is the kind that a user meets: the backend raises while it builds one of the passes."""
    from torch._dynamo.backends.common import aot_autograd

    def fails(graph, inputs):
        raise NotImplementedError("no such instruction\nmore lines")

    passes = {"fw_compiler": lambda graph, _: graph.forward, "bw_compiler": lambda graph, _: graph.forward}
    passes["fw_compiler" if when == "forward" else "bw_compiler"] = fails
    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": aot_autograd(**passes), "dynamic": False})
    given = context()
    eager, compiled = network(0), network(0)
    train_run(a_run(tmp_path, "eager"), eager, given, SILENT)
    result = train_run(a_run(tmp_path, "compiled"), compiled, given.with_compiler("always"), SILENT)
    assert result["compiled"] is False and result["compile_error"] == "NotImplementedError: no such instruction"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the compiled step failed (NotImplementedError: no such instruction)")
    for (name, value), same in zip(compiled.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(value, same), f"{name}: no batch is counted twice"


def test_a_run_says_that_its_steps_were_compiled_and_nothing_where_nobody_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": "eager", "dynamic": False})
    plain = train_run(a_run(tmp_path, "plain"), network(0), context(epochs=1), SILENT)
    assert not plain.keys() & {"compiled", "compile_error"}
    compiled = train_run(a_run(tmp_path), network(0), context(epochs=1).with_compiler("always"), SILENT)
    assert compiled["compiled"] is True and "compile_error" not in compiled


def test_a_step_without_memory_does_not_count_as_one_that_cannot_be_compiled(monkeypatch):
    def short(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": short, "dynamic": False})
    given = context().with_compiler("always")
    with pytest.raises(Exception, match="out of memory"):
        taken(Learner(network(0), given, 9), given, [0])
