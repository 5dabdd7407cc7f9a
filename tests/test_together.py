"""A trial of two workers through Ray Train, asked for by TPE, against the same trial of one."""

import os
import time
from contextlib import suppress

import msgspec
import pytest
import torch
from conftest import HANG_S, mini_text
from shared import sha
from test_embedded import listening
from test_ray_job import descendants

from soupray.core.trials import Training
from soupray.distributed import cluster
from soupray.distributed.tune import Planned, run_trials
from soupray.search.plan import trials_of
from soupray.search.state import find_manifests
from soupray.search.tpe import TpeSearch
from soupray.services.place import Place
from soupray.spec.sweep_spec import parse
from soupray.store.checkpoints import Checkpoints
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

pytestmark = pytest.mark.slow


class Told:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def __getattr__(self, what: str):
        return lambda *about: self.said.append((what, *about))


def all_that_listen() -> list[str]:
    """The addresses on which this process and those that it started listen."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):  # a worker that has ended meanwhile
            found += listening(pid)
    return found


def on_loopback(addresses: list[str]) -> bool:
    """As the kernel writes it, IPv4 and IPv4 inside IPv6."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    return {a.rpartition(":")[0] for a in addresses} <= loopback


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """(checkpoints, what two workers made, what one made) of the same trial."""
    folder = tmp_path_factory.mktemp("together")
    text = mini_text(**{"sampler: random": "sampler: tpe"}).replace("trials: 4", "trials: 1")
    text = text.replace("storage: embedded", f"storage: file://{folder}/store")
    spec = parse(text.replace("tracking: embedded", "tracking: off"), "x.yaml")
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"workers": 2})})
    place = Place(storage=spec.storage, credentials=None, cache=str(folder / "cache"))
    basis = make_basis(spec, place, sha("basis")[:32])
    (trial,) = trials_of(spec, basis)  # TPE begins with the random plan
    store = place.open_store()
    search = TpeSearch(store, spec, basis)
    with cluster.attach("local", spec):
        run_trials(spec, place, Planned([], search), told := Told())
        end = time.monotonic() + HANG_S
        while (heard_on := all_that_listen()) and not on_loopback(heard_on):
            # The workers of a trial, which end now, have a port of torch on all addresses.
            assert time.monotonic() < end, heard_on
            time.sleep(0.1)
    assert len(heard_on) >= 5
    (together,) = find_manifests(store, [trial])
    assert told.said == [
        ("suggested", trial),
        ("started", trial.key),
        *(("epoch", trial.key, record) for record in together.history),
        ("finished", trial.key, True),
    ]
    assert [t.value for t in search.study.trials] == [together.held_out.accuracy]
    here = worker_context(spec, place)
    lone = msgspec.structs.replace(trial, key=sha("alone")[:16], training=Training())
    training = fine_tune(lone, here.task, here.data, here.checkpoints)
    try:
        while True:
            next(training)
    except StopIteration as end:
        alone = end.value
    checkpoints = Checkpoints(store, folder / "weights")
    return checkpoints, together, alone


def test_two_workers_train_the_model_that_one_would(trials):
    """Sums run in another order, which Adam enlarges where a gradient is all but zero.

    So the way that the weights went from theta_0 is compared: it differs by less than a hundredth
    of its length.
    """
    checkpoints, together, alone = trials
    init, two, one = (
        torch.cat([t.flatten() for _, t in sorted(checkpoints.load(sha).items())])
        for sha in (together.init, together.checkpoint.sha256, alone.checkpoint.sha256)
    )
    assert (two - one).norm() < 0.01 * (one - init).norm()
    assert together.best_epoch == alone.best_epoch


def test_both_say_the_same_of_every_epoch(trials):
    _, together, alone = trials
    losses = [[e.train_loss for e in made.history] for made in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(together.held_out.correct - alone.held_out.correct) <= 1
    assert together.trial.training.workers == 2
