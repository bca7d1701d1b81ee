"""A sweep's points on a cluster: in the place of a worker process stands a thread that has each point called for.

The process that leads the sweep talks to it as to any worker (``sweep/worker.py`` says in what words). Between the
thread and the node an actor keeps the messages, so that nothing but Ray's own connections is needed. A point whose node
is lost is called for again and goes on from its checkpoint; the leading process notices nothing.
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
from experiments.execution.cluster import CallLostError, Cluster, Ticket
from experiments.execution.cluster_runs import LOSSES
from experiments.sweep.worker import Place, train_flags

LOOK = 0.2  # seconds between looks at whether the sweep is being stopped


class Mail:
    """What calls tell, and what they are answered; by box, of which every call has its own."""

    def __init__(self) -> None:
        self._told: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self._answers: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    async def tell(self, box: str, message: Any) -> Any:
        """Tell something; returns the answer, once there is one."""
        await self._told[box].put(message)
        return await self._answers[box].get()

    async def heard(self, box: str) -> Any:
        """The next thing that is told."""
        return await self._told[box].get()

    async def answer(self, box: str, answer: Any) -> None:
        """Answer what was heard last."""
        await self._answers[box].put(answer)


@dataclass
class NodeLink:
    """On a node: a connection as ``train_flags`` wants it. What it receives is the answer to what it sent last."""

    mail: Any
    box: str
    answer: Any = None

    def send(self, message: Any) -> None:
        """Tell the leading process something, and wait for its answer."""
        import ray

        self.answer = ray.get(self.mail.tell.remote(self.box, message))

    def recv(self) -> Any:
        """The answer."""
        return self.answer


@dataclass
class Trainer:
    """In the place of a worker process: it can be joined and terminated.

    Attributes:
        link: to the process that leads the sweep.
        exitcode: as of a process.
    """

    cluster: Cluster
    mail: Any
    place: Place
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
        """Whether it has not ended."""
        return self._thread.is_alive()

    def terminate(self) -> None:
        """Have the point at work saved, and end."""
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
        """Have one point trained to its end, on as many nodes as it takes."""
        reason = ""
        for attempt in range(LOSSES + 1):
            box = f"{id(self)} {attempt} {' '.join(flags)}"
            call = self.cluster.call(train_point, self.place, flags, self.mail, box, self.log)
            try:
                if self._follow(call, box):
                    return
            except CallLostError as error:
                reason = f"{error}, {attempt + 1} times"
            except UsageError as error:
                reason = str(error)
                break
        self.link.send(("ended", ({"status": "failed", "reason": reason}, [])))

    def _follow(self, call: Ticket, box: str) -> bool:
        """Pass on what a call tells until it has ended; False where it ended without a word.

        Raises:
            CallLostError: it was lost.
            EOFError: the sweep is being stopped; what is trained is saved.
        """
        heard = self.mail.heard.remote(box)
        while True:
            (first, *_) = self.cluster.answered([heard, call], LOOK) or [None]
            if self._stopped.is_set():
                self.mail.answer.remote(box, False)  # whoever waits for an answer gets on to its next step
                self.cluster.stop_all([call])
                raise EOFError
            if first is heard:
                message = self.cluster.ray.get(heard)
                self.link.send(message)
                self.mail.answer.remote(box, message[0] == "epoch" and self._reply())
                if message[0] == "ended":
                    self.cluster.answered([call], LOOK)  # its room is free for the next
                    return True
                heard = self.mail.heard.remote(box)
            elif first is call:
                self.cluster.answer(call)
                return False

    def _reply(self) -> Any:
        """What the leading process says to an epoch; nothing if it is stopping."""
        while not self.link.poll(LOOK):
            if self._stopped.is_set():
                return False
        return self.link.recv()


def begin_on(cluster: Cluster) -> Callable[[Place, Path, int], tuple[Trainer, Connection]]:
    """What begins a worker of a sweep on a cluster, and connects to it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=False)
    # On the node of the leading process, without which the sweep ends anyway: no other node can take it away.
    mail = cluster.ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)(Mail).remote()

    def begin(place: Place, log: Path, _share: int) -> tuple[Trainer, Connection]:
        link, theirs = Pipe()
        return Trainer(cluster, mail, place, log, theirs), link

    return begin


def train_point(place: Place, flags: list[str], mail: Any, box: str, log: Path) -> None:
    """On a node: train the run that flags make, and tell how it goes."""
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        train_flags(NodeLink(mail, box), place, flags)
