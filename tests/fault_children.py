"""Child processes that are killed, and what is left of them: for the tests of faults.

A child is a fork of the test's own warm process: it starts in milliseconds, and SIGKILL ends it as it ends any other.
"""

import fcntl
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from experiments.data import datasets as data
from experiments.data.augment import Views
from experiments.execution import planned_run, study_runs
from experiments.models import build_model
from experiments.store import leases, work_sharing
from experiments.store.runs import Run
from experiments.study.config import load_study
from experiments.study.plan import plan
from experiments.tracking import Tracker
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
from experiments.training.run_context import RunContext
from tiny_images import tiny_dataset

SILENT = Tracker("off", "", "", "", {}, None)  # type: ignore[arg-type]
VIEWS = Views(image_size=12, crop_size=10, padding=1, cutout=3)


def fork(job, *arguments, **named):
    """Run a job in a child; returns its process number. The child's exit code is 0, or 1 if the job raised."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the parent's threads are not there
        answer = job(*arguments, **named)
        code = answer if isinstance(answer, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child, seconds=60.0):
    """The exit code of a child, negative for the signal that ended it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the child did not end within {seconds} s")


def kill(child):
    """SIGKILL, and wait for the end."""
    os.kill(child, signal.SIGKILL)
    return wait(child)


def a_run(folder, name="run", epochs=6):
    """A run of the tiny network, on tiny images with every augmentation."""
    return Run.of(Path(folder) / name, "tiny", {"seed": 0, "data": "tiny", "recipe": {"epochs": epochs}})


def train(run, epochs=6, slow=0.0, train_images=24):
    """Train a run to its end, under its lease and with dropout, as a study does; ``slow`` seconds a step longer."""
    recipe = Recipe(epochs=epochs, batch_size=8, lr=0.05, device="cpu", precision="fp32", evaluate_every=2)
    context = RunContext.of(tiny_dataset(12, train_images), VIEWS, recipe)
    torch.manual_seed(0)
    model = nn.Sequential(build_model("small", classes=2, groups=2, width=4), nn.Dropout(0.2))
    if slow:
        model.register_forward_hook(lambda *_: time.sleep(slow))
    with run.lock() as lease:
        assert lease is not None, "nobody else is there"
        if run.result is None:
            held = replace(run, lease=lease)
            held.begin()
            values = train_run(held, model, context, SILENT)
            held.finish("done", values, "cpu")


def left(run):
    """Values of a finished run that another finished run must equal: weights, optimizer, metrics, result."""
    state = run.load_checkpoint()
    assert state is not None
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for number, slot in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in slot.items() if value is not None}
    tensors["rng"] = state["rng"]["cpu"]
    times = ("seconds", "date")
    metrics = [{k: v for k, v in epoch.items() if k not in times} for epoch in run.metrics()]
    result = {k: v for k, v in (run.result or {}).items() if k not in times}
    return tensors, {"metrics": metrics, "history": len(state["history"]), "result": result}


def assert_same(run, reference):
    """Two finished runs ended with the same bits."""
    (tensors, values), (expected, expected_values) = left(run), left(reference)
    assert values == expected_values
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [k + 1 for k in range(len(lines))], "no line twice"
    odd = [p.name for p in run.folder.iterdir() if p.name.startswith((".", "lease", "checkpoint-", "failure"))]
    assert not odd, odd


def locked_within(seconds, file):
    """Lock a file, waiting for at most so long; return whether it is locked."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        else:
            return True


def work(runs_root, log, flags=(), beat=leases.HEARTBEAT_INTERVAL_S, expiry=leases.EXPIRY_S, host=None):
    """One worker of a study of tiny runs; a lock of the kernel's tells whether a run is ever in two hands.

    Args:
        runs_root: the shared folder.
        log: where a line is added for whatever is worth one.
        flags: of the study.
        beat, expiry: of its leases, in seconds.
        host: to be taken for a process of another machine.
    """
    data.load = lambda _spec, size, *_rest: tiny_dataset(size)
    leases.HEARTBEAT_INTERVAL_S, leases.EXPIRY_S, work_sharing.POLL_INTERVAL_S = beat, expiry, 0.02
    if host is not None:
        leases.machine = lambda: host
    trained = planned_run.train_run

    def note(text):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def guarded(run, *rest):
        with open(run.folder / "guard", "w", encoding="utf-8") as guard:
            if not locked_within(0.1, guard):  # the threads of a killed process may outlive its main thread briefly
                note(f"DOUBLED {run.folder.name}")
            values = trained(run, *rest)
            note(f"trained {run.folder.name}" + (" TWICE" if run.result else ""))
            return values

    planned_run.train_run = guarded
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    small = ["--recipe.batch_size=8", "--recipe.device=cpu", "--wandb=off", "--model.width=4"]
    small += ["--data.image_size=16", "--data.crop_size=16", *flags]
    study = load_study("quickstart", [*small, f"--runs_root={runs_root}"])
    return min(1, study_runs.train_all(study, plan(study)))


def train_until_operation(run, number):
    """Train, but be killed right before a file operation of that number in the run's folder: exact, not random."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(run.folder) in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(run)


def divided(folder, flags, workers, kills, pause, rng, **named):
    """Workers divide a study while some are killed and replaced, as long as there is something left to do.

    Returns:
        The exit codes of those that lived, the lines of the log, and how many were killed.
    """
    log = Path(folder) / "log"
    log.touch()

    def begin():
        return fork(work, Path(folder) / "runs", log, flags, **named)

    alive, codes, killed = [begin() for _ in range(workers)], [], 0
    while killed < kills and len(alive) == workers:
        time.sleep(rng.uniform(*pause))
        code = kill(alive.pop(rng.randrange(len(alive))))
        if code == -signal.SIGKILL:
            killed += 1
            alive.append(begin())
        else:  # it had just ended by itself
            codes.append(code)
    return codes + [wait(child, 300) for child in alive], log.read_text().splitlines(), killed


def go_on(run):
    """Train to the end in a child."""
    assert wait(fork(train, run)) == 0


SMALL = ["--recipe.batch_size=8", "--recipe.device=cpu", "--wandb=off", "--model.width=4", "--recipe.epochs=1"]
SMALL += ["--data.image_size=16", "--data.crop_size=16", "--seeds=1"]


def run_small(folder, *flags):
    """The exit code of a study's training, in this process, on tiny images."""
    study = load_study("quickstart", [*SMALL, f"--runs_root={folder}", *flags])
    return study_runs.train_all(study, plan(study))
