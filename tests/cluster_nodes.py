"""A Ray cluster on this machine in a process of its own, and a study that is led on it by another.

``python cluster_nodes.py nodes COUNT`` prints the address once all nodes are there, and obeys lines: ``kill`` ends the
last node but for the first with SIGKILL, ``add`` brings another one. It ends with its input.

``python cluster_nodes.py lead LOG FLAGS`` trains a study of tiny runs on the nodes; a lock of the kernel's tells
whether a run is ever in two hands.
"""

import fcntl
import os
import signal
import sys

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def nodes(count):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    others = [cluster.add_node(wait=False, **SMALL) for _ in range(count - 1)]
    cluster.wait_for_nodes()
    answer(cluster.address)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(others.pop(), allow_graceful=False)
        else:
            others.append(cluster.add_node(**SMALL))
        answer(line.strip())
    cluster.shutdown()


def answer(text):
    print("answer", text, flush=True)


def lead(log, flags):
    from experiments.errors import UsageError
    from experiments.execution import cluster_runs as runs
    from experiments.execution import study_runs
    from experiments.store.stop_signal import install_handlers
    from experiments.study.config import load_study
    from experiments.study.plan import plan

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` turns it off
    install_handlers()
    os.environ["GUARD_LOG"] = log
    runs.train_one = Guarded(log)
    study = load_study("quickstart", flags)
    try:
        return study_runs.train_all(study, plan(study))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class Guarded:
    """In the place of ``train_one``: notes who trains what, and whether somebody else does at the same time."""

    def __init__(self, log):
        self.log = log

    def __call__(self, *arguments):
        from experiments.execution import planned_run
        from experiments.execution.cluster_runs import train_one

        if not hasattr(planned_run, "unguarded"):
            planned_run.unguarded = planned_run.train_run
        planned_run.train_run = self.train_run
        return train_one(*arguments)

    def train_run(self, run, *rest):
        from experiments.execution import planned_run

        with open(run.folder / "guard", "w", encoding="utf-8") as guard:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.note(f"DOUBLED {run.folder.name}")
            self.note(f"begun {run.folder.name}")
            values = planned_run.unguarded(run, *rest)
            self.note(f"trained {run.folder.name}" + (" TWICE" if run.result else ""))
            return values

    def note(self, text):
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    import cluster_nodes  # not as __main__, so that nodes find what they are sent

    if sys.argv[1] == "nodes":
        cluster_nodes.nodes(int(sys.argv[2]))
    else:
        sys.exit(cluster_nodes.lead(sys.argv[2], sys.argv[3:]))
