import pytest

from experiments.store import leases
from experiments.store.lockstep import hold_lockstep_runs
from experiments.store.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def runs_in(folder, seeds=3):
    return [Run.of(folder, "tiny", {"seed": seed, "data": "tiny"}) for seed in range(seeds)]


def test_siblings_are_what_is_free_and_equally_far(tmp_path):
    lead, free, ahead, done, held, spare = runs_in(tmp_path, 6)
    ahead.save_checkpoint({"history": [{}], "part": None})
    done.finish("done", {"test_accuracy": 0.5, "seconds": 1.0}, "here")
    other = leases.claim(held.folder)
    others = dict(enumerate((free, ahead, done, held, spare)))
    with hold_lockstep_runs(lead, others, 6) as taken:
        assert list(taken) == [0, 4]
        assert all(run.lease is not None and leases.claim(run.folder) is None for run in taken.values())
        assert leases.claim(ahead.folder) is not None, "given back at once"
    assert leases.claim(free.folder) is not None
    with hold_lockstep_runs(lead, {4: spare, 0: free}, 2) as taken:
        assert list(taken) == [4]
    other.release()
