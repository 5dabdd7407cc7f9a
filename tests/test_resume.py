"""Trials that were interrupted go on at their last state, if all of their workers found it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from shared import Small, sha, small
from test_loop import EVERYTHING, Member
from test_training import another, run

from soupray.training import resume
from soupray.training.trial import fine_tune


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Small:
    return small(tmp_path_factory.mktemp("here"))


@pytest.fixture
def interrupted(here, monkeypatch):
    """A trial of three epochs that was left after the second, and what the whole of it gives."""
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    trial = another(here.trial, **EVERYTHING)
    trial = msgspec.structs.replace(trial, key=sha("interrupted")[:16])
    expected, _ = run(here, msgspec.structs.replace(trial, key=sha("undisturbed")[:16]))
    left = fine_tune(trial, here.task, here.data, here.checkpoints)
    for _ in range(3):  # the third epoch is under way in no state
        next(left)
        _settled(here, trial.key)
    left.close()
    yield trial, expected
    store = here.checkpoints.store
    for path in store.list("resume") + [p for p in store.list("trials") if trial.key in p]:
        store.delete(path)


def _settled(here: Small, key: str) -> None:
    """Uploads run beside the training: wait for what is on its way."""
    before = None
    while (now := here.checkpoints.store.list(f"resume/{key}")) != before:
        before = now
        time.sleep(0.1)


def test_an_interrupted_trial_goes_on_at_its_last_state(here, interrupted):
    trial, expected = interrupted
    store = here.checkpoints.store
    assert f"resume/{trial.key}/state.json" in store.list(f"resume/{trial.key}")
    manifest, records = run(here, trial)
    assert len(records) < 3
    assert manifest.checkpoint == expected.checkpoint
    assert manifest.held_out == expected.held_out
    assert manifest.best_epoch == expected.best_epoch
    assert [e.train_loss for e in manifest.history] == [e.train_loss for e in expected.history]
    assert store.list(f"resume/{trial.key}") == []  # it is over


def test_a_state_that_is_corrupt_is_not_believed(here, interrupted):
    trial, expected = interrupted
    store = here.checkpoints.store
    (path,) = (p for p in store.list(f"resume/{trial.key}") if p.endswith(".safetensors"))
    data = bytearray(store.get(path))
    data[-1] ^= 1
    store.put(path, bytes(data))
    manifest, records = run(here, trial)
    assert len(records) == 3  # from the start
    assert manifest.checkpoint == expected.checkpoint


def test_a_short_trial_leaves_no_states(here):
    trial = msgspec.structs.replace(another(here.trial, epochs=2), key=sha("short")[:16])
    training = fine_tune(trial, here.task, here.data, here.checkpoints)
    next(training)
    assert here.checkpoints.store.list("resume/short") == []
    training.close()


class Knowing(Member):
    """Also says what the other two found: the same as this one."""

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        if tensors[0].dtype == torch.int64:
            tensors[0].fill_(tensors[0].sum())


@pytest.mark.parametrize("rank", [0, 2])
def test_workers_go_on_at_a_state_that_all_of_them_found_else_all_start_again(
    here, interrupted, rank
):
    trial, _ = interrupted

    def first_epoch(group: Member) -> int:
        training = fine_tune(trial, here.task, here.data, here.checkpoints, group)
        epoch = next(training).epoch
        training.close()
        return epoch

    assert first_epoch(Member(rank)) == 1  # the others found none
    assert first_epoch(Knowing(rank)) > 1


def test_workers_that_found_different_states_all_start_again():
    def found(sha256: str) -> tuple[resume.Saved, dict]:
        return resume.Saved(path="x", sha256=sha256, history=(), best_epoch=0), {}

    one, another = found("0" * 14 + "1" + "0" * 49), found("f" * 64)

    def each(*states: tuple | None) -> list:
        told, marks = threading.Barrier(3), []

        class Real(Member):
            def add_up(self, tensors: list[torch.Tensor]) -> None:
                marks.append(tensors[0].clone())
                told.wait(10)
                tensors[0].copy_(sum(marks))

        def agreed(rank: int) -> tuple | None:
            return resume.common(states[rank], Real(rank), torch.device("cpu"))

        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(agreed, range(3)))

    assert each(one, one, one) == [one] * 3
    for states in ([one, one, another], [another, None, another], [None, one, None], [None] * 3):
        assert each(*states) == [None] * 3
