"""A study whose runs are each trained by several processes, a device each: on this machine, or under torchrun on many.

Errors are reported before a process is started. The processes are started by torch's elastic agent, which
stops all of them if one fails. They do the same whether this module or torchrun has started them.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import torch

from experiments.errors import RunFailedError, UsageError
from experiments.pipeline import run_study
from experiments.store import stop_signal
from experiments.study.config import Study
from experiments.study.plan import PlannedRun, plan
from experiments.tracking import Tracker
from experiments.training.data_parallel import whole_batch
from experiments.training.distributed import DistributedProcessGroup, ProcessGroupLostError, backend_for
from experiments.training.loss_monitor import DivergedError
from experiments.training.ranks import GRACE_PERIOD_S, exit_reason
from experiments.training.run import train_run
from experiments.training.run_context import choose_device

RANK_TIMEOUT_S = 600.0  # after which a rank that does not answer in training counts as lost
WRONG_USAGE, INTERRUPTED = 2, 130


def is_rank() -> bool:
    """Tell if this process is one of several that were started together."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _plan_for_ranks(study: Study, here: int) -> list[PlannedRun]:
    """Return the planned runs, once it is sure that ``gpus`` ranks can train them, ``here`` of them on this machine."""
    ranks = study.execution.gpus
    check_devices([v.recipe.device for v in study.variants], here)
    planned = plan(study)
    for p in planned:
        if (images := whole_batch(p.variant.recipe, p.dataset)) < ranks:
            raise UsageError(
                f"variant {p.variant.name}: {ranks} processes need an image each, and a batch has {images}; "
                "raise recipe.batch_size or use fewer processes"
            )
    return planned


def check_devices(names: list[str], ranks: int) -> None:
    """Check that this machine has a device of each name for each of its ranks.

    Args:
        names: as ``recipe.device`` has them.
        ranks: processes that train together here.

    Raises:
        UsageError: there is not.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in set(names) - {"cpu"}:
        if name not in ("auto", "cuda"):
            raise UsageError(
                f"recipe.device={name} cannot be combined with {ranks} processes: must be auto, cuda or cpu"
            )
        if available < ranks:
            fewer = f"gpus={available}, or " if available else ""
            raise UsageError(
                f"gpus={ranks}: this machine has {available} CUDA device{'s' * (available != 1)}; use {fewer}"
                f"--recipe.device=cpu for {ranks} processes that share its CPU"
            )


def launch_ranks(study: Study, arguments: list[str]) -> int:
    """Run a study by ``gpus`` processes on this machine, and wait for their end; returns the exit code.

    Args:
        study: fully resolved.
        arguments: arguments of the command line of each process.

    Raises:
        UsageError: there are not as many devices, or a run cannot be trained on several.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    planned = _plan_for_ranks(study, study.execution.gpus)
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // study.execution.gpus))
    # What the shell turned off (`&`, nohup) stays off; the ranks save when this process is gone.
    signals = ["SIGTERM"] + ["SIGINT"] * (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
    logging.disable(logging.CRITICAL)  # the agent reports a failure in many lines; one line is printed below
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=study.execution.gpus,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle=",".join(signals),
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "experiments", *arguments)
            return 0
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:  # else it has reported the reason
                how = f"rank {rank} of {study.execution.gpus} {exit_reason(failure.exitcode)}; the others were stopped"
                print(f"error: {how}; {_last_checkpoint(planned)}; the same command goes on", file=sys.stderr)
            elif failure.exitcode == INTERRUPTED:
                raise KeyboardInterrupt from None
            return WRONG_USAGE if failure.exitcode == WRONG_USAGE else 1


def _last_checkpoint(planned: list[PlannedRun]) -> str:
    """Return a phrase on the last checkpoint of the run that was in training last."""
    begun = [p for p in planned if p.run.result is None and (p.run.folder / "config.json").is_file()]
    if not begun:
        return "no run had begun"
    last = max(begun, key=lambda p: max(path.stat().st_mtime for path in p.run.folder.iterdir()))
    epoch = last.run.epochs_saved()
    kept = f"checkpoint of epoch {epoch} kept" if epoch else "no checkpoint yet"
    return f"{last.variant.name}, seed {last.run.seed}: {kept}"


def run_as_rank(study: Study) -> int:
    """Run a study as one of several processes that were started together; returns the exit code.

    Raises:
        UsageError: as ``launch_ranks``; only the first process of a machine raises it.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    threading.Thread(target=_stop_with_parent, args=[os.getppid()], daemon=True).start()
    try:
        if study.execution.gpus not in (1, here):
            raise UsageError(
                f"gpus={study.execution.gpus}, but {here} processes were started on this machine: leave it out"
            )
        if torch.cuda.is_available() and local < torch.cuda.device_count():
            torch.cuda.set_device(local)
        study = replace(study, execution=replace(study.execution, gpus=size))
        planned = _plan_for_ranks(study, here)
    except UsageError:
        if local:
            return WRONG_USAGE  # the first process of the machine reports it
        raise
    gc.freeze()  # else collecting torch's modules takes seconds at the end, and a notice leaves few
    kinds = [choose_device(v.recipe.device).type for v in study.variants]
    process_group = DistributedProcessGroup(rank, size, backend_for(kinds), RANK_TIMEOUT_S, here=here)
    try:
        return follow(planned, process_group) if rank else int(run_study(study, planned, process_group) > 0)
    except ProcessGroupLostError as error:
        return _exit_after_lost_rank(rank, size) if error.by_another else 1  # else it has reported its own error


def follow(planned: list[PlannedRun], process_group: DistributedProcessGroup) -> int:
    """Train the runs that rank 0 announces, and write nothing; returns the exit code."""
    by_name = {p.run.folder.name: p for p in planned}
    try:
        with stop_signal.deferred(together=True, aloud=False), process_group.joined():
            for name in process_group.announced_runs():
                with process_group.training(name):
                    if name not in by_name:
                        raise RunFailedError(f"{name} is not planned here: other images or another version", False)
                    _train_as_other_rank(by_name[name], process_group)
    except (RunFailedError, OSError) as error:
        who = f"rank {process_group.rank} of {process_group.size} on {socket.gethostname()}"
        print(f"error: {who}: {error}; all are stopped, and the same command goes on", file=sys.stderr, flush=True)
        return 1
    return 0


def _train_as_other_rank(p: PlannedRun, process_group: DistributedProcessGroup) -> None:
    silent = Tracker("off", "", "", "", {}, p.run.folder)
    with suppress(DivergedError):  # rank 0 records it, and goes on to the next run
        train_run(p.run, p.fresh_model(), p.context(), silent, process_group)


def _exit_after_lost_rank(rank: int, size: int) -> int:
    """End after another rank was lost; the launcher knows which, and has some seconds to stop this one."""
    try:
        with stop_signal.deferred(together=True, aloud=False):
            deadline = time.monotonic() + GRACE_PERIOD_S
            while time.monotonic() < deadline and not stop_signal.received():
                time.sleep(0.05)
    except KeyboardInterrupt:
        return 1
    lost = f"rank {rank} of {size} on {socket.gethostname()} lost the others"
    print(f"error: {lost}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    return 1


def _stop_with_parent(parent: int) -> None:
    """Stop, and save, once the process that started the ranks is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
