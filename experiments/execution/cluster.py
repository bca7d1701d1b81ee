"""A Ray cluster as this project uses it: nodes that see the same folder and run the same code, and calls made on them.

A call is a Ray task that Ray never repeats: the caller learns that it was lost with its node, and decides. Calls share
their state through the run store, which all nodes see.
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

CONNECT_TIMEOUT_S = 5.0  # Ray itself tries for two minutes
STOP_TIMEOUT_S = 30.0  # for calls that are stopped to save their step
COMMON_VERSIONS = ("commit", "python", "torch", "torchvision", "numpy")  # equal on every node
START = "`ray start --head` starts one, `ray start --address=HOST:6379` on every further machine joins it"

Call = Any  # an ObjectRef: a call that was made


class CallLostError(Exception):
    """A call was lost, since its process or its node is gone; the message gives the known reason on one line."""


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
        """Move this process of a node into the shared folder.

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
    """A connected Ray cluster.

    Attributes:
        ray: the module.
        needs: resources that Ray reserves for a call: ``num_cpus``, ``num_gpus``.
        room: number of calls that fit at a time.
        rendezvous: folders that its nodes share.
    """

    ray: Any
    needs: dict[str, int]
    room: int
    rendezvous: Rendezvous

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
        """Call a function of a module on a node that has room, now or later."""
        options = {**self.needs, "scheduling_strategy": "SPREAD", **options}
        return _remote(self.ray).options(**options).remote(self.rendezvous, self.needs["num_cpus"], function, arguments)

    def wait_for_any(self, tickets: Iterable[Call], seconds: float) -> list[Call]:
        """Return the calls that have ended, as soon as there is one, or after a number of seconds."""
        tickets = list(tickets)
        return self.ray.wait(tickets, num_returns=1, timeout=seconds)[0]

    def answer(self, ticket: Call) -> tuple[Any, str]:
        """Return the function's result, and the name of its node.

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

    def stop(self, ticket: Call) -> None:
        """Make a call save its current step and end; a call that has not begun never will."""
        self.ray.cancel(ticket)

    def stop_all(self, tickets: Iterable[Call]) -> None:
        """Stop calls and give them time to save."""
        tickets = list(tickets)
        for ticket in tickets:
            self.stop(ticket)
        if tickets:
            self.ray.wait(tickets, num_returns=len(tickets), timeout=STOP_TIMEOUT_S)


@contextmanager
def connected(folder: Path, cpus: int, device: str) -> Iterator[Cluster]:
    """Connect to the Ray cluster at ``RAY_ADDRESS``, or to that of this machine, and check all its nodes.

    Args:
        folder: folder of the run store, which all nodes must see.
        cpus: number of cores of a run.
        device: ``recipe.device``; where it is a GPU, or ``auto`` and the cluster has some, a run gets one.

    Raises:
        UsageError: no Ray, no cluster, a node with another folder or versions, or no node with room for a run.
    """
    ray = _connect()
    folder.mkdir(parents=True, exist_ok=True)
    token = folder.resolve() / f".cluster-{uuid.uuid4().hex[:12]}"
    try:
        token.touch()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        needs, room = _resources([node["Resources"] for node in nodes], cpus, device)
        cluster = Cluster(ray, needs, room, Rendezvous(token, Path.cwd()))
        _check_nodes(cluster, nodes)
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
    _silence_node_logs()
    return ray


def find_cluster() -> str:
    """Return the cluster's address, HOST:PORT, once something has answered there; torch is not needed for it.

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
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        where = f"RAY_ADDRESS={named}" if named else f"on=ray: {address}"
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"{where}: no Ray cluster answers there ({reason}); {START}") from None
    return address


def _silence_node_logs() -> None:
    """Keep Ray from printing the log of every node that dies: the caller reports it in one line."""
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **_named: None


def _resources(resources: list[dict[str, float]], cpus: int, device: str) -> tuple[dict[str, int], int]:
    """Return the resources of one run, and the number of runs that fit on nodes with these resources.

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


def _check_nodes(cluster: Cluster, nodes: list[dict[str, Any]]) -> None:
    """Compare folder and versions on every node before anything is trained.

    Raises:
        UsageError: names a node that cannot join, cannot run this project, or has it otherwise.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, here = {}, versions()
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[cluster.call(check_versions, here, num_cpus=0, num_gpus=0, scheduling_strategy=there)] = node[
            "NodeManagerHostname"
        ]
    for ticket, host in asked.items():
        try:
            cluster.answer(ticket)
        except CallLostError as error:
            raise UsageError(f"node {host}: cannot run this project: {error}") from None
        except ImportError as error:
            raise UsageError(f"node {host}: cannot run this project: {error}; all nodes need the same") from None


def check_versions(wanted: dict[str, Any]) -> None:
    """Compare, on a node, the versions of code and libraries with those of the leading process.

    This is done only at the start: a commit while a study runs does not end it.

    Raises:
        UsageError: names the node and the difference.
    """
    for name, version in versions().items():
        if version != wanted[name]:
            where = f"node {socket.gethostname()}: {name}"
            raise UsageError(f"{where} {version}, here {wanted[name]}; all nodes need the same")


@cache
def _remote(ray: Any) -> Any:
    return ray.remote(max_retries=0)(_on_node)


def _on_node(
    rendezvous: Rendezvous, cpus: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, str]:
    """Make a call on a node; training in it saves when it is stopped. Returns the answer and the node's name."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable matrix products on CUDA
    rendezvous.join()
    import ray
    import torch

    torch.set_num_threads(cpus)
    name = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:6]})"
    with _save_on_signals():
        return function(*arguments), name


@contextmanager
def _save_on_signals() -> Iterator[None]:
    """Save on SIGINT, by which Ray stops a call, and on SIGTERM, which a node sends that is shut down."""
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
