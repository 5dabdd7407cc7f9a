"""Budgets: what is counted, what is forecast, and that nothing starts after the end."""

import json
import math

import pytest
from msgspec import structs
from shared import DIGITS, Old, ingredient, key, scores, trial, unpacked

from soupray.core.errors import ConfigError, NotFound
from soupray.core.records import encode
from soupray.core.trials import EpochRecord, Tombstone
from soupray.search.budget import (
    UNSUGGESTED,
    Account,
    Book,
    Stretch,
    account,
    in_words,
    read_book,
    stretch_of,
)
from soupray.search.prefixes import Enough, create_enough
from soupray.search.state import find_state, known_trials
from soupray.services.place import start_services
from soupray.spec.sweep_spec import SweepSpec, load, parse
from soupray.store import layout
from soupray.store.lease import begin_drain
from soupray.sweep.meter import Meter
from soupray.sweep.progress import SweepProgress


def spec(budget: str, resources: str = "{cpu: 2, gpu: 0.5}") -> SweepSpec:
    text = DIGITS.read_text().replace("{cpu: 1, gpu: 0}", resources)
    return parse(f"{text}\nbudget: {budget}\n", "x")


PRICED = "{gpu_hours: 1, hours: 4, usd: 2, price: {gpu_hour: 2.5, cpu_hour: 0.1}}"


def hours(*ends: float) -> Stretch:
    return Stretch(*(3600.0 * end for end in ends))


def test_an_account_by_hand():
    """Trials a, b: from hour 0 to 1 and 0.5 to 2; c from 3 to 4: 3.5 hours of trials in 3 hours.

    With half a GPU and two cores each: 1.75 GPU-hours and 7 core-hours, 4.375 + 0.7 USD. They have
    7 epochs of half an hour; 3.5 hours more are to come, 3.5 / 3 at a time: 3 hours.
    """
    known = {"a": (hours(0, 1),), "b": (hours(0.5, 2),)}
    book = Book(known, 7 * 1800.0, 7, {"d": 4.0, UNSUGGESTED: 3.0})
    found = account(book, spec(PRICED), {"c": hours(3, 4)})
    assert structs.asdict(found.spent) == pytest.approx(
        {"gpu_hours": 1.75, "cpu_hours": 7.0, "hours": 3.0, "usd": 5.075}
    )
    assert structs.asdict(found.forecast) == pytest.approx(
        {"gpu_hours": 3.5, "cpu_hours": 14.0, "hours": 6.0, "usd": 10.15}
    )
    assert found.over == ("gpu_hours: 1.75 of 1", "usd: 5.075 of 2")
    assert found.will_be_over == ("gpu_hours: 3.5 of 1", "hours: 6 of 4", "usd: 10.15 of 2")
    said = in_words(found, spec(PRICED))
    assert said == "1.75 of 1 GPU-hours, all trials: 3.5; 3 of 4 hours, all trials: 6; " + (
        "5.08 of 2 USD, all trials: 10.2"
    )


def test_without_epochs_there_is_no_forecast_and_without_a_price_no_usd():
    found = account(Book({}, 0.0, 0, {"a": 3.0}), spec("{gpu_hours: 1}"))
    assert found.forecast is None
    assert found.spent.usd is None
    moment = account(Book({"a": (hours(0, 5.76e-9),)}, 0.0, 0, {}), spec("{hours: 4}"))
    assert in_words(moment, spec("{hours: 4}")) == "0 of 4 hours"  # not 5.76e-09
    assert found.over == ()


def test_a_state_that_was_saved_while_a_trial_runs_is_counted_once():
    """It ran for an hour, was killed, and runs again from hour 5; at hour 6 it saved both hours."""
    book = Book({"a": (hours(4, 6),)}, 0.0, 0, {})
    found = account(book, spec("{hours: 9}"), {"a": hours(5, 6.5)})
    assert found.spent.hours == pytest.approx(2.5)


def test_a_trial_that_was_interrupted_costs_all_its_epochs():
    epochs = tuple(
        EpochRecord(epoch=k, train_loss=1, held_out_correct=1, held_out_n=2, seconds=30)
        for k in (1, 2, 3)
    )
    made = structs.replace(ingredient(key("a"), scores(5)), started=100.0, finished=140.0)
    assert stretch_of(made) == (100, 140)
    assert stretch_of(structs.replace(made, history=epochs)) == (50, 140)
    dead = Tombstone(trial=made.trial, reason="x", history=epochs[:1], started=0.0, finished=90.0)
    assert stretch_of(dead) == (0, 90)


@pytest.mark.parametrize(
    ("budget", "resources", "said"),
    [
        ("{gpu_hours: 0}", None, "budget.gpu_hours: 0 is not allowed"),
        ("{hours: -1}", None, "budget.hours: -1 is not allowed"),
        ("{hours: .nan}", None, "budget.hours: nan"),
        ("{usd: .inf, price: {gpu_hour: 1}}", None, "budget.usd: inf"),
        ("{usd: 5}", None, "usd needs a price; write price: {gpu_hour: ...}"),
        ("{usd: 5, price: {cpu_hour: 1}}", None, "usd needs a price; write price: {gpu_hour"),
        ("{usd: 5, price: {gpu_hour: 1}}", "{cpu: 1, gpu: 0}", "write price: {cpu_hour"),
        ("{usd: 5, price: {gpu_hour: 0}}", None, "budget.price.gpu_hour: 0 is not allowed"),
        ("{gpu_hours: 5}", "{cpu: 1, gpu: 0}", "gpu_hours are never spent with resources.gpu: 0"),
        ("{price: {gpu_hour: 1}}", None, "the budget has no limit"),
        ("{days: 3}", None, "budget.days: unknown key"),
    ],
)
def test_what_cannot_be_a_budget_is_refused_by_name(budget, resources, said):
    with pytest.raises(ConfigError) as error:
        spec(budget, resources or "{cpu: 2, gpu: 0.5}")
    assert said in str(error.value)


def test_a_budget_changes_no_trial():
    assert spec("{hours: 3}").digest == spec("{hours: 4}").digest


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def metered(budget: str, manifests: dict) -> tuple[Meter, SweepProgress, Clock, list]:
    trials = [structs.replace(trial(key(n)), hparams={"epochs": 4, "lr": 1.0}) for n in "abc"]
    said, clock = [], Clock()

    def read(name: str):
        if name not in manifests:
            raise NotFound("no")
        return manifests[name]

    progress = SweepProgress(trials, read, lambda name: None)
    book = Book({}, 0.0, 0, {t.key: 4.0 for t in trials})
    of = spec(budget).model_copy(update={"name": "s"})
    return (
        Meter(of, book, progress, read, lambda: said.append(clock()), clock),
        progress,
        clock,
        said,
    )


def test_the_start_of_a_worker_is_no_longer_counted_after_the_first_epoch():
    """It is in no record, so that the cost would fall when the trial ends. Here it takes 90 s."""
    manifests: dict = {}
    meter, _progress, clock, _ = metered("{hours: 2}", manifests)
    a = key("a")
    meter.started(a)
    clock.now = 90
    assert meter.account().spent.hours == pytest.approx(90 / 3600)
    clock.now = 100
    epoch = EpochRecord(epoch=1, train_loss=1, held_out_correct=1, held_out_n=2, seconds=10)
    meter.epoch(a, epoch)
    assert meter.account().spent.hours == pytest.approx(10 / 3600)
    clock.now = 110
    meter.epoch(a, structs.replace(epoch, epoch=2))
    assert meter.account().spent.hours == pytest.approx(20 / 3600)
    manifests[a] = structs.replace(
        ingredient(a, scores(5)), trial=structs.replace(trial(a), sweep="s"), started=90.0,
        finished=110.0,
    )  # fmt: skip
    meter.finished(a, complete=True)
    assert meter.account().spent.hours == pytest.approx(20 / 3600)
    # Another trial: 5 s of start, and a first epoch of 3 s.
    meter.started(key("b"))
    clock.now = 118
    meter.epoch(key("b"), structs.replace(epoch, seconds=3))
    assert meter.account().spent.hours == pytest.approx(23 / 3600)


def test_when_the_clock_reaches_the_budget_it_is_said_once_and_running_trials_end():
    manifests: dict = {}
    meter, progress, clock, said = metered("{hours: 2}", manifests)
    a, b, c = (key(n) for n in "abc")
    meter.started(a)
    clock.now = 1800
    meter.started(b)
    epoch = EpochRecord(epoch=1, train_loss=1, held_out_correct=1, held_out_n=2, seconds=1800)
    meter.epoch(a, epoch)
    assert not meter.is_spent()
    # 11 epochs of half an hour are left: 5.5 hours beside the half hour of one trial.
    assert meter.account().forecast.hours == pytest.approx(6)
    clock.now = 7199
    assert not meter.is_spent()
    clock.now = 7200
    assert meter.is_spent()
    assert said == [7200]
    assert meter.over == ("hours: 2 of 2",)
    meter.started(c)  # Tune had begun to start it: its worker looks, and does not begin
    meter.spared(c)
    manifests[a] = structs.replace(
        ingredient(a, scores(5)), trial=structs.replace(trial(a), sweep="s"), started=0.0,
        finished=9000.0,
    )  # fmt: skip
    clock.now = 9000
    meter.finished(a, True)
    meter.failed(b, "OSError: full")
    assert meter.is_spent()
    assert len(said) == 1
    assert meter.account().spent.hours == pytest.approx(2.5)
    assert meter.account().spent.gpu_hours == pytest.approx(0.5 * (2.5 + 2.0))
    assert "2.5 of 2 hours" in progress.extra()
    assert (progress.complete, list(progress.errors)) == (1, [b])


def test_a_trial_whose_worker_died_is_counted_once_when_it_is_over():
    manifests: dict = {}
    meter, _, clock, _ = metered("{hours: 9}", manifests)
    a = key("a")
    meter.started(a)
    clock.now = 3600
    meter.repeated(a, "its worker died")
    assert meter.account().spent.hours == pytest.approx(1)
    meter.started(a)
    clock.now = 7200
    assert meter.account().spent.hours == pytest.approx(2)
    manifests[a] = structs.replace(
        ingredient(a, scores(5)), trial=structs.replace(trial(a), sweep="s"), started=3600.0,
        finished=7200.0,
    )  # fmt: skip
    meter.finished(a, True)
    assert meter.account().spent.hours == pytest.approx(1)


@pytest.fixture
def old(tmp_path, monkeypatch) -> Old:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # whatever would train fails
    return unpacked(tmp_path)


def edited(old: Old, more: str, trials: int = 5) -> SweepSpec:
    path = old.spec("one")
    path.write_text(path.read_text().replace("trials: 4", f"trials: {trials}") + more)
    return load(path)


def test_the_records_of_a_store_are_counted(old):
    of = edited(old, "budget: {hours: 1}\n")
    found = find_state(old.store, of)
    (missing,) = found.missing
    book = read_book(old.store, of, found)
    took = {i.trial.key: i.finished - i.started for i in found.complete}
    assert {k: s[0].end - s[0].start for k, s in book.stretches.items()} == pytest.approx(took)
    assert book.epochs == sum(len(i.history) for i in found.complete)
    assert book.left == {UNSUGGESTED: 0.0, missing.key: missing.hparams["epochs"]}
    # A saved state of one epoch of 7 s, and a trial that another sweep trained.
    epoch = EpochRecord(epoch=1, train_loss=2, held_out_correct=1, held_out_n=4, seconds=7)
    saved = {"path": "x", "sha256": "0" * 64, "history": [epoch], "best_epoch": 1}
    old.store.put(layout.resume_state(missing.key), encode(saved))
    again = read_book(old.store, of, found)
    (one,) = again.stretches[missing.key]
    assert one.end - one.start == pytest.approx(7)
    assert sum(again.left.values()) == missing.hparams["epochs"] - 1
    other = read_book(old.store, of.model_copy(update={"name": "other"}), found)
    assert other.stretches.keys() == {missing.key}
    stopped = find_state(old.store, load(old.spec("two")))
    two = read_book(old.store, load(old.spec("two")), stopped)
    assert stopped.stopped <= two.stretches.keys()


def test_a_trial_that_was_killed_when_there_were_enough_is_counted_and_not_forecast(old):
    path = old.spec("one")
    rule = "stop: {gain: 5.0, probability: 0.5, after: 2}"
    text = path.read_text().replace("trials: 4", f"trials: 5\n  {rule}")
    path.write_text(text + "budget: {hours: 1}\n")
    of = load(path)
    before = find_state(old.store, of)
    (missing,) = before.missing
    plan = known_trials(old.store, of, before.basis)
    made = Enough(size=4, chance=0.1, gain=5.0, probability=0.5)
    create_enough(old.store, of, plan, made)
    epoch = EpochRecord(epoch=1, train_loss=2, held_out_correct=1, held_out_n=4, seconds=7)
    saved = {"path": "x", "sha256": "0" * 64, "history": [epoch], "best_epoch": 1}
    old.store.put(layout.resume_state(missing.key), encode(saved))
    found = find_state(old.store, of)
    assert (found.missing, found.spared) == ([], [missing])
    book = read_book(old.store, of, found)
    (one,) = book.stretches[missing.key]
    assert one.end - one.start == pytest.approx(7)
    assert book.left == {UNSUGGESTED: 0.0}


def test_a_sweep_whose_budget_is_spent_starts_nothing_and_says_how_to_go_on(old):
    edited(old, "budget: {usd: 0.000001, price: {cpu_hour: 1}}\n")
    before = set(old.store.list(layout.TRIALS))
    done = old.run("sweep", "one", check=False)
    assert done.returncode == 1
    assert "the budget is spent (usd: " in done.stderr
    assert "1 of 5 trials are not trained" in done.stderr
    assert "raise `budget` in the spec and run the same command again" in done.stderr
    assert set(old.store.list(layout.TRIALS)) == before
    said = old.run("status", "one").stdout
    assert "budget: " in said
    found = json.loads(old.run("status", "one", "--json").stdout)["account"]
    assert found["over"]
    assert found["forecast"]["usd"] > found["spent"]["usd"] > 0
    plan = old.run("sweep", "one", "--dry-run").stdout
    assert "It is spent (usd: " in plan
    assert json.loads(old.run("sweep", "one", "--dry-run", "--json").stdout)["budget"] == found


def test_a_dry_run_says_whether_a_budget_will_be_enough(old):
    edited(old, "budget: {hours: 100}\n")
    assert "will not be enough" not in old.run("sweep", "one", "--dry-run").stdout
    edited(old, "", 5)
    path = old.spec("one")
    spent = json.loads(old.run("status", "one", "--json").stdout)["account"]["spent"]["hours"]
    path.write_text(path.read_text().replace("hours: 100", f"hours: {spent * 1.01}"))
    assert "It will not be enough for all trials (hours: " in " ".join(
        old.run("sweep", "one", "--dry-run").stdout.split()
    )


def test_a_worker_looks_before_it_begins_a_trial(old):
    from soupray.distributed.tune import _Trainable

    of = edited(old, "budget: {hours: 1}\n")
    (missing,) = find_state(old.store, of).missing
    place = start_services(of, old.folder / "home").place
    worker = _Trainable.__new__(_Trainable)
    config = {"spec": of.model_dump_json(), "place": encode(place), "trial": encode(missing)}
    config = {k: v if isinstance(v, str) else v.decode() for k, v in config.items()}
    worker.setup(config | {"driver": "me"})
    begin_drain(old.store, "one", "me")
    assert worker.step() == {"spared": True, "done": True}


def test_an_account_can_be_stored():
    found = account(Book({}, 0.0, 0, {}), spec("{hours: 1}"))
    assert isinstance(found, Account)
    assert math.isclose(json.loads(encode(found))["spent"]["hours"], 0.0)
