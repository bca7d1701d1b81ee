"""Points of a sweep on a cluster: a thread instead of a worker process calls each point on some node.

The process that leads the sweep talks to it as to any worker (``sweep/worker.py`` lists the messages). Between the
thread and the node an actor keeps the messages, so that only Ray's own connections are needed. A point whose node
is lost is called again and goes on from its checkpoint; the leading process notices nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from experiments.errors import UsageError
from experiments.execution.cluster import Call, CallLostError, Cluster
from experiments.execution.cluster_runs import MAX_LOSSES
from experiments.sweep.worker import SweepContext, train_flags

POLL_INTERVAL_S = 0.2  # between checks for the end of the sweep


class MessageQueues:
    """Messages of calls and the answers to them, in a pair of queues for each call."""

    def __init__(self) -> None:
        self._messages: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self._answers: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    async def send(self, key: str, message: Any) -> Any:
        """Send a message; returns the answer, once there is one."""
        await self._messages[key].put(message)
        return await self._answers[key].get()

    async def receive(self, key: str) -> Any:
        """Return the next message."""
        return await self._messages[key].get()

    async def answer(self, key: str, answer: Any) -> None:
        """Answer the last message."""
        await self._answers[key].put(answer)


@dataclass
class NodeConnection:
    """Connection of ``train_flags`` on a node; it receives the answer to its last message."""

    queues: Any
    key: str
    answer: Any = None

    def send(self, message: Any) -> None:
        """Send a message to the leading process, and wait for its answer."""
        import ray

        self.answer = ray.get(self.queues.send.remote(self.key, message))

    def recv(self) -> Any:
        """Return the answer to the last message."""
        return self.answer


@dataclass
class ClusterWorker:
    """Thread with the interface of a worker process: it can be joined and terminated.

    Attributes:
        link: to the process that leads the sweep.
        exitcode: as of a process.
    """

    cluster: Cluster
    queues: Any
    place: SweepContext
    log: Path
    link: Connection
    exitcode: int = 1
    _stopped: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        """Tell if it has not ended."""
        return self._thread.is_alive()

    def terminate(self) -> None:
        """Save the point in training, and end."""
        self._stopped.set()

    kill = terminate

    def _work(self) -> None:
        try:
            while True:
                self._train(self.link.recv())
        except (EOFError, OSError):
            pass  # the leading process has no more work, or is gone
        finally:
            self.link.close()

    def _train(self, flags: list[str]) -> None:
        """Train one point to its end, on as many nodes as it takes."""
        reason = ""
        for attempt in range(MAX_LOSSES + 1):
            key = f"{id(self)} {attempt} {' '.join(flags)}"
            call = self.cluster.call(train_point, self.place, flags, self.queues, key, self.log)
            try:
                if self._follow(call, key):
                    return
            except CallLostError as error:
                reason = f"{error}, {attempt + 1} times"
            except UsageError as error:
                reason = str(error)
                break
        self.link.send(("ended", ({"status": "failed", "reason": reason}, [])))

    def _follow(self, call: Call, key: str) -> bool:
        """Forward the messages of a call until it has ended; returns False if it ended without its last message.

        Raises:
            CallLostError: it was lost.
            EOFError: the sweep is being stopped; what is trained is saved.
        """
        message_call = self.queues.receive.remote(key)
        while True:
            (first, *_) = self.cluster.wait_for_any([message_call, call], POLL_INTERVAL_S) or [None]
            if self._stopped.is_set():
                self.queues.answer.remote(key, False)  # whoever waits for an answer gets on to its next step
                self.cluster.stop_all([call])
                raise EOFError
            if first is message_call:
                message = self.cluster.ray.get(message_call)
                self.link.send(message)
                self.queues.answer.remote(key, message[0] == "epoch" and self._reply())
                if message[0] == "ended":
                    self.cluster.wait_for_any([call], POLL_INTERVAL_S)  # its room is free for the next
                    return True
                message_call = self.queues.receive.remote(key)
            elif first is call:
                self.cluster.answer(call)
                return False

    def _reply(self) -> Any:
        """Return the leading process's answer to an epoch; False if it is stopping."""
        while not self.link.poll(POLL_INTERVAL_S):
            if self._stopped.is_set():
                return False
        return self.link.recv()


def worker_factory(cluster: Cluster) -> Callable[[SweepContext, Path, int], tuple[ClusterWorker, Connection]]:
    """Return a function that starts a worker of a sweep on a cluster, and connects to it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=False)
    # On the node of the leading process, without which the sweep ends anyway: no other node can take it away.
    queues = cluster.ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)(MessageQueues).remote()

    def begin(place: SweepContext, log: Path, _share: int) -> tuple[ClusterWorker, Connection]:
        link, theirs = Pipe()
        return ClusterWorker(cluster, queues, place, log, theirs), link

    return begin


def train_point(place: SweepContext, flags: list[str], queues: Any, key: str, log: Path) -> None:
    """Train, on a node, the run that flags make, and send messages on its progress."""
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        train_flags(NodeConnection(queues, key), place, flags)
