"""A Ray cluster as this project uses it: nodes that see the same folder and run the same code, and calls made on them.

A call is a Ray task that Ray never repeats: who made it learns that it was lost with its node, and decides. What a call
needs to know of the others stands in the run store, which all nodes share.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.errors import UsageError

PATIENCE = 5.0  # seconds for a cluster to answer at its address; Ray itself tries for two minutes
GRACE = 30.0  # seconds in which calls that are stopped save their step
COMMON_VERSIONS = ("commit", "python", "torch", "torchvision", "numpy")  # of the provenance, on every node
START = "`ray start --head` starts one, `ray start --address=HOST:6379` on every further machine joins it"

Ticket = Any  # an ObjectRef: a call that was made, and whose answer may be there one day


class CallLostError(Exception):
    """A call was lost with its process or its node; the message is one line."""


@dataclass(frozen=True)
class Rendezvous:
    """Folders that every node must share with the leading process.

    Attributes:
        token: a file that the leading process has put into the run store.
        place: the folder in which it was started.
    """

    token: Path
    place: Path

    def join(self) -> None:
        """Change to the shared folder, in a process of a node.

        Raises:
            UsageError: names the node, and the folder that it does not see.
        """
        node = f"node {socket.gethostname()}"
        try:
            os.chdir(self.place)  # relative paths mean the same everywhere
        except OSError as error:
            reason = f"{(error.strerror or '').lower()}; all nodes need the folder in which the command is given"
            raise UsageError(f"{node}: {self.place}: {reason}") from None
        folder = self.token.parent
        if not self.token.is_file():
            raise UsageError(f"{node}: {folder}: not the folder seen here; all nodes must share --runs_root")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{node}: {folder}: not writable there")


@dataclass(frozen=True)
class Cluster:
    """A cluster that was reached.

    Attributes:
        ray: the module.
        needs: what Ray sets aside for a call: ``num_cpus``, ``num_gpus``.
        room: how many calls it has room for at a time.
        rendezvous: folders that its nodes share.
    """

    ray: Any
    needs: dict[str, int]
    room: int
    rendezvous: Rendezvous

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Ticket:
        """Have a function of a module called on some node that has room, now or later."""
        options = {**self.needs, "scheduling_strategy": "SPREAD", **options}
        return _remote(self.ray).options(**options).remote(self.rendezvous, self.needs["num_cpus"], function, arguments)

    def answered(self, tickets: Iterable[Ticket], seconds: float) -> list[Ticket]:
        """Return the calls that have ended, as soon as there is one, or after so many seconds."""
        tickets = list(tickets)
        return self.ray.wait(tickets, num_returns=1, timeout=seconds)[0]

    def answer(self, ticket: Ticket) -> tuple[Any, str]:
        """Return the value of the function, and the node it was called on.

        Raises:
            CallLostError: process or node are gone, or somebody there has stopped the call.
            Exception: what the function raised.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(ticket)
        except errors.TaskCancelledError:
            raise CallLostError("stopped on its node") from None
        except errors.RayTaskError as error:
            raise error.cause or RuntimeError(str(error)) from None
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            raise CallLostError("lost with its node") from None
        except errors.OutOfMemoryError:
            raise CallLostError("its process was killed, since its node ran out of memory") from None
        except errors.RayError as error:  # the process alone, or its answer
            raise CallLostError(f"lost with its process ({type(error).__name__})") from None

    def stop(self, ticket: Ticket) -> None:
        """Have a call finish its step, save it and end; one that has not begun never does."""
        self.ray.cancel(ticket)

    def stop_all(self, tickets: Iterable[Ticket]) -> None:
        """Stop calls and give them time to save."""
        tickets = list(tickets)
        for ticket in tickets:
            self.stop(ticket)
        if tickets:
            self.ray.wait(tickets, num_returns=len(tickets), timeout=GRACE)


@contextmanager
def reached(folder: Path, cpus: int, device: str) -> Iterator[Cluster]:
    """The Ray cluster at ``RAY_ADDRESS``, or the one that this machine belongs to, with all its nodes looked at.

    Args:
        folder: of the run store, which all nodes must see.
        cpus: of a run.
        device: ``recipe.device``; where it is a GPU, or ``auto`` and the cluster has some, a run gets one.

    Raises:
        UsageError: no Ray here, no cluster there, a node that sees or has something else, or none with room for a run.
    """
    ray = _connect()
    folder.mkdir(parents=True, exist_ok=True)
    token = folder.resolve() / f".cluster-{uuid.uuid4().hex[:12]}"
    try:
        token.touch()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        needs, room = _needs([node["Resources"] for node in nodes], cpus, device)
        cluster = Cluster(ray, needs, room, Rendezvous(token, Path.cwd()))
        _look_at(cluster, nodes)
        yield cluster
    finally:
        token.unlink(missing_ok=True)
        ray.shutdown()


def _connect() -> Any:
    address = find_cluster()
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (Exception, SystemExit) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"on=ray: the Ray cluster at {address} cannot be used from here: {reason}") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray's own would end the process without saving
    _hush()
    return ray


def find_cluster() -> str:
    """Return the address of the cluster, HOST:PORT, once something has answered there; without loading torch.

    Raises:
        UsageError: no Ray here, or no cluster there.
    """
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # of 20, where something else than Ray answers
    try:
        from ray._private.services import canonicalize_bootstrap_address  # the lookup that ray.init("auto") makes
    except ImportError:
        raise UsageError("on=ray: Ray is not installed here; pip install 'ray>=2.40' installs it") from None
    named = os.environ.get("RAY_ADDRESS", "")
    if "://" in named:
        raise UsageError(f"RAY_ADDRESS={named}: must be HOST:PORT, and this machine a node of that cluster")
    try:
        address = canonicalize_bootstrap_address(named or "auto")
    except ValueError:
        raise UsageError(f"RAY_ADDRESS={named}: must be HOST:PORT, such as 10.0.0.5:6379") from None
    except ConnectionError:
        address = None
    if address is None:
        raise UsageError(f"on=ray: no Ray cluster is running here; {START}")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        where = f"RAY_ADDRESS={named}" if named else f"on=ray: {address}"
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"{where}: no Ray cluster answers there ({reason}); {START}") from None
    return address


def _hush() -> None:
    """Keep Ray from printing the log of every node that dies: who made the calls tells of it in a line."""
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **_named: None


def _needs(resources: list[dict[str, float]], cpus: int, device: str) -> tuple[dict[str, int], int]:
    """Return the resources that a run needs, and the number of runs that these nodes have room for.

    Raises:
        UsageError: for none.
    """
    gpus = 1 if device.startswith("cuda") or (device == "auto" and any(r.get("GPU") for r in resources)) else 0
    room = 0
    for there in resources:
        fits = int(there.get("CPU", 0)) // cpus
        room += min(fits, int(there.get("GPU", 0))) if gpus else fits
    if room == 0:
        largest = int(max((r.get("CPU", 0) for r in resources), default=0))
        some = f"{cpus} CPUs and a GPU" if gpus else f"{cpus} CPUs; the largest has {largest}"
        raise UsageError(f"cpus_per_run={cpus}, recipe.device={device}: no node of the cluster has {some}")
    return {"num_cpus": cpus, "num_gpus": gpus}, room


def _look_at(cluster: Cluster, nodes: list[dict[str, Any]]) -> None:
    """Have every node join and compare versions before anything is trained.

    Raises:
        UsageError: names a node that cannot join, cannot run this project, or has it otherwise.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, here = {}, versions()
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[cluster.call(compare, here, num_cpus=0, num_gpus=0, scheduling_strategy=there)] = node[
            "NodeManagerHostname"
        ]
    for ticket, host in asked.items():
        try:
            cluster.answer(ticket)
        except CallLostError as error:
            raise UsageError(f"node {host}: cannot run this project: {error}") from None
        except ImportError as error:
            raise UsageError(f"node {host}: cannot run this project: {error}; all nodes need the same") from None


def compare(wanted: dict[str, Any]) -> None:
    """On a node: make sure that code, and what decides numbers, are those of the leading process.

    This is done at the start alone: who commits while a study runs does not end it.

    Raises:
        UsageError: names the node and what is otherwise.
    """
    for name, found in versions().items():
        if found != wanted[name]:
            where = f"node {socket.gethostname()}: {name}"
            raise UsageError(f"{where} {found}, here {wanted[name]}; all nodes need the same")


@cache
def _remote(ray: Any) -> Any:
    return ray.remote(max_retries=0)(_on_node)


def _on_node(
    rendezvous: Rendezvous, cpus: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, str]:
    """On a node: make a call, whose training saves on notice; returns the answer and the name of the node."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable matrix products on CUDA
    rendezvous.join()
    import ray
    import torch

    torch.set_num_threads(cpus)
    name = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:6]})"
    with _attentive():
        return function(*arguments), name


@contextmanager
def _attentive() -> Iterator[None]:
    """Ray stops a call as Ctrl-C would, and a node that is shut down sends SIGTERM: both are notices to save."""
    from experiments.store.stop_signal import install_handlers

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # off where a shell started the node by `&`
    install_handlers()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions() -> dict[str, Any]:
    """Return the versions of the code and of the libraries that affect numerical results."""
    from experiments.store.runs import provenance

    here = provenance("")
    return {name: here[name] for name in COMMON_VERSIONS}
