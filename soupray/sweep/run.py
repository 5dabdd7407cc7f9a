"""Run a sweep: train the unfinished trials with Ray Tune and store every result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from soupray.core.errors import NotFound, RayLost, StoreError, TrialError
from soupray.core.progress import Show
from soupray.core.records import Basis, Record
from soupray.core.trials import EpochRecord, Manifest, Trial
from soupray.recipes import check_objective, load_recipes
from soupray.reporting.tracker import load_trackers
from soupray.search.budget import (
    Book,
    account,
    in_words,
    read_book,
)
from soupray.search.history import Stopped, create_stopped
from soupray.search.plan import is_adaptive
from soupray.search.prefixes import Enough, enough_said
from soupray.search.state import (
    SweepState,
    basis_key,
    find_basis,
    known_trials,
    prefixes_of,
    read_state,
    with_let_go,
)
from soupray.services.home import remember_spec
from soupray.services.place import Place, Services, start_services
from soupray.spec.plugged_in import load_code
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import Lease, begin_drain, find_stop_request, write_heartbeat
from soupray.store.manifests import find_manifest
from soupray.store.objects import Store, check_bucket, create_record
from soupray.sweep.indexer import Indexer
from soupray.sweep.meter import Meter
from soupray.sweep.progress import SweepProgress, may_pass

if TYPE_CHECKING:
    from soupray.distributed.tune import Control, Planned
    from soupray.sweep.enough import StopRule

log = logging.getLogger(__name__)

RESTARTS = 3
"""How often a sweep starts the Ray of this machine again, as often as it repeats a lost trial."""


class SweepReport(Record, frozen=True, kw_only=True):
    """How a sweep ended: numbers of trials, errors, and the duration in seconds.

    `failed` maps the key of a trial to the reason; another run repeats these trials, with success
    if the reason was outside the trial (`soupray.sweep.progress.may_pass`). `stopped_by`: who asked
    the sweep to stop. `enough`: the decision of the stop rule, after which `spared` trials were not
    trained. `budget`: what was spent of it, in words. `over`: limits that are reached.
    """

    sweep: str
    trials: int
    trained: int
    found: int
    diverged: int
    stopped: int
    failed: dict[str, str]
    unfinished: int
    seconds: float
    storage: str
    stopped_by: str | None = None
    enough: Enough | None = None
    spared: int = 0
    budget: str = ""
    over: tuple[str, ...] = ()


def run_sweep(
    spec: SweepSpec,
    home: Path,
    address: str | None,
    show: Show | None = None,
    *,
    file: Path | None = None,
) -> SweepReport:
    """Train the trials of `spec` that are not in the store.

    Args:
        spec: the sweep.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        show: shows the progress.
        file: of the spec; a copy is kept in `home`. None: the spec was made in code, and is written
            there.

    Raises:
        ConfigError: the spec or the environment cannot work.
        StoreError: the store cannot be reached, or another driver holds the sweep.
    """
    from soupray.distributed import cluster
    from soupray.search.plugged import load_sampler

    started = time.time()
    load_recipes(spec.recipes)  # a plug-in that is away is named before anything is trained
    for name in spec.recipes:
        check_objective(name, spec.targets.kind if spec.targets else "one_class")
    load_code(spec.functions)
    load_trackers(spec)
    if spec.search.code is not None:
        load_sampler(spec.search.sampler)
    with cluster.when_needed(address, spec, workers=spec.training.workers) as attach:
        services = start_services(spec, home)
        check_bucket(services.place.storage, services.place.read_credentials())
        store = services.place.open_store()
        remember_spec(spec, home, file)
        with Lease(store, layout.lease(spec.name)) as lease:
            known = find_basis(store, spec)
            basis = basis_or_make(spec, services.place, known, attach, home)
            create_record(store, layout.spec(spec.name, spec.digest), _as_data(spec))
            state = _state(store, spec, basis)
            book = read_book(store, spec, state) if spec.budget else None
            if state.to_train and not (book and account(book, spec).over):
                attach()
                if known is not None:
                    cluster.check_data_there(spec, services.place, known)
            progress, meter = _train(spec, services, store, state, (lease, show), book)
        lease.refuse_loss(spec.name)
    made = _report(spec, services, state, progress, time.time() - started)
    if meter is None:
        return made
    return structs.replace(made, budget=in_words(meter.account(), spec), over=meter.over)


def _state(store: Store, spec: SweepSpec, basis: Basis) -> SweepState:
    """Return what there is to do, and say it."""
    stored = read_state(store, spec, basis)
    state = with_let_go(stored, spec)
    if again := len(stored.complete) - len(state.complete):
        log.info(
            f"the weights of {again} trials were let go; `keep: all` has them trained again "
            "(`keep: ingredients` would not)."
        )
    gone = f" ({len(state.stopped)} were stopped)" if state.stopped else ""
    log.info(
        f"{spec.search.trials} trials planned, {len(state.over)} in the store, "
        f"{state.to_train} to train{gone}."
    )
    if state.enough is not None:
        log.info(
            f"{enough_said(state.enough)} (search.stop): {len(state.spared)} others are not "
            "trained. Leave search.stop out to train them."
        )
    return state


def _report(
    spec: SweepSpec,
    services: Services,
    before: SweepState,
    progress: SweepProgress,
    seconds: float,
) -> SweepReport:
    """Return what was in the store before, and what this run did."""
    done = progress.complete + progress.diverged + progress.given_up
    enough = before.enough or progress.enough
    # Trials that failed may be among the others: they are said as failed, and are not needed.
    spared = before.to_train - done - len(progress.errors) if progress.enough else 0
    return SweepReport(
        sweep=spec.name,
        trials=spec.search.trials,
        trained=progress.complete,
        found=len(before.over),
        diverged=len(before.diverged) + progress.diverged,
        failed=progress.errors,
        stopped=len(before.stopped) + progress.given_up,
        unfinished=before.to_train - done - spared,
        seconds=seconds,
        storage=services.place.storage,
        stopped_by=progress.stopped_by,
        enough=enough,
        spared=len(before.spared) + spared,
    )


def _train(
    spec: SweepSpec,
    services: Services,
    store: Store,
    state: SweepState,
    held: tuple[Lease, Show | None],
    book: Book | None,
) -> tuple[SweepProgress, Meter | None]:
    """Run the missing trials, show the live table, and send finished trials to the tracker."""

    def read(key: str) -> Manifest:
        manifest = find_manifest(store, key)
        if manifest is None:
            raise NotFound(f"{layout.manifest(key)} is not in {store.url}.")
        return manifest

    def over(key: str) -> None:
        indexer.add(key)
        if rule is not None:
            rule.add(key)

    def drain(enough: Enough) -> None:
        begin_drain(store, spec.name, lease.holder)
        progress.enough = enough
        log.info(
            f"{enough_said(enough)} (search.stop). No further one starts; those that run finish."
        )

    lease, show = held
    progress = SweepProgress(state.missing, read, over, show)
    indexer = Indexer(
        spec, services, read, progress.live, lambda: prefixes_of(store, spec, state.basis)
    )
    rule = _stop_rule(spec, services.place, state.basis, read, drain)
    tell = partial(begin_drain, store, spec.name, lease.holder)
    meter = None if book is None else Meter(spec, book, progress, read, tell)
    for key in state.over:
        over(key)
    with indexer, rule or nullcontext():
        if state.to_train and not (meter and meter.is_spent()):
            lease.attend(lambda: _beat(store, spec.name, lease, progress))
            with progress, _last_beat(store, spec.name, lease, progress):
                _run(spec, services.place, store, state, (progress, meter), lease)
    return progress, meter


def _stop_rule(
    spec: SweepSpec,
    place: Place,
    basis: Basis,
    read: Callable[[str], Manifest],
    tell: Callable[[Enough], None],
) -> StopRule | None:
    """Return the thread that applies the rule of the spec; None: it has none, as most."""
    if spec.search.stop is None:
        return None
    from soupray.store.checkpoints import Checkpoints  # it imports torch: seconds
    from soupray.sweep.enough import StopRule

    store = place.open_store()
    plan = known_trials(store, spec, basis)
    checkpoints = Checkpoints(store, place.folder / "weights")
    return StopRule(spec, checkpoints, (plan, basis.split("held_out")), read, tell)


def _beat(store: Store, sweep: str, lease: Lease, progress: SweepProgress) -> None:
    """Say what runs now, and look whether somebody asked this driver to stop."""
    write_heartbeat(store, sweep, lease.holder, progress.beat())
    if progress.stopped_by is None:
        asked = find_stop_request(store, sweep, lease.holder)
        if asked is not None:
            log.info(f"{asked.who} asked this sweep to stop: it ends now.")
            progress.stopped_by = asked.who


@contextmanager
def _last_beat(store: Store, sweep: str, lease: Lease, progress: SweepProgress) -> Iterator[None]:
    """Write a heartbeat at the end, with the failures of the last seconds (`soupray logs`)."""
    try:
        yield
    finally:
        with suppress(StoreError):
            if not lease.lost:
                write_heartbeat(store, sweep, lease.holder, progress.beat())


def _run(
    spec: SweepSpec,
    place: Place,
    store: Store,
    state: SweepState,
    watching: tuple[SweepProgress, Meter | None],
    lease: Lease,
) -> None:
    from soupray.distributed import cluster
    from soupray.distributed.tune import run_trials

    progress, meter = watching
    events = meter or progress

    control = _control(store, spec, state, watching, lease)
    for restarts in range(RESTARTS + 1):
        # Trials that are stored, but whose end the driver did not hear, end at once in a new run.
        left = [trial for trial in state.missing if not progress.is_over(trial.key)]
        try:
            for planned in _planned(store, spec, state, left):
                if not (control.stop() or control.drained()):
                    run_trials(spec, place, planned, events, control)
        except RayLost:
            if not cluster.session_is_here or restarts == RESTARTS:
                raise
            log.warning(
                "the node of Ray on this machine ended (its raylet was killed, or the memory was "
                f"full). Starting Ray again, {restarts + 1} of at most {RESTARTS} times; trials "
                "that ran go on from their last states."
            )
            events.lost()
            cluster.start_again()
        else:
            return


def _control(
    store: Store,
    spec: SweepSpec,
    state: SweepState,
    watching: tuple[SweepProgress, Meter | None],
    lease: Lease,
) -> Control:
    """Return how the sweep ends before all its trials are trained."""
    from soupray.distributed.tune import Control

    progress, meter = watching

    def spent() -> bool:
        return meter is not None and meter.is_spent()

    def stop() -> bool:
        spent()  # no further trial starts from then on
        return lease.lost or progress.stopped_by is not None

    def give_up(trial: Trial, last: EpochRecord) -> None:
        create_stopped(store, spec, state.basis, Stopped(trial=trial, last=last))

    return Control(
        stop=stop,
        drained=lambda: progress.enough is not None or spent(),
        give_up=give_up,
        driver=lease.holder,
    )


def _planned(
    store: Store,
    spec: SweepSpec,
    state: SweepState,
    left: list[Trial],
) -> Iterator[Planned]:
    """Yield the work that is left: trials; for an adaptive search what it suggests.

    A search knows the scores of trials whose weights were let go, and does not suggest them again:
    they are trained before it.
    """
    from soupray.distributed.tune import Planned
    from soupray.search.plugged import PluginSearch
    from soupray.search.tpe import TpeSearch

    if not is_adaptive(spec):
        yield Planned(left)
        return
    again = [trial for trial in left if trial.key in state.freed]
    if again:
        yield Planned(again)
    kind = TpeSearch if spec.search.sampler == "tpe" else PluginSearch
    search = kind(store, spec, state.basis)
    if search.left:
        yield Planned([], search)


def basis_or_make(
    spec: SweepSpec,
    place: Place,
    basis: Basis | None,
    attach: Callable[[], None],
    home: Path,
) -> Basis:
    """Return the stored basis, or make one on a worker, because the driver never loads weights.

    Args:
        spec: the sweep.
        place: where the sweep stores its data.
        basis: the stored one, if there is one.
        attach: connects to Ray.
        home: folder for the state of this machine; it knows the sweep of a teacher.
    """
    from soupray.distributed import cluster

    teacher = None
    if spec.teacher is not None:
        from soupray.sweep.teacher import find_teacher, note_other_teacher  # torch: seconds

        if basis is None:
            teacher = find_teacher(spec, home)
        else:
            note_other_teacher(spec, basis, home)
    if basis is None:
        log.info("decoding the data and building the initial model ...")
        attach()
        basis = cluster.make_basis_there(spec, place, basis_key(spec), teacher)
        for note in basis.notes:
            log.warning(f"{note}.")
    return basis


def _as_data(spec: SweepSpec) -> dict[str, object]:
    return spec.model_dump(mode="json")


def check_report(report: SweepReport) -> None:
    """Raise TrialError if trials failed or did not finish, and say whether to run again."""
    if report.stopped_by and report.unfinished:
        raise TrialError(
            f"{report.stopped_by} asked this sweep to stop (`soupray stop`): {report.unfinished} "
            f"of {report.trials} trials are not finished. Run the same command again: finished "
            "trials are kept, and the others go on from their saved epochs."
        )
    if report.over and report.unfinished:
        raise TrialError(
            f"the budget is spent ({'; '.join(report.over)}): {report.unfinished} of "
            f"{report.trials} trials are not trained. Finished trials are kept. To go on, raise "
            "`budget` in the spec and run the same command again; or make a soup of what is there: "
            "`soupray soup --partial`."
        )
    if report.failed:
        lasting = {key: why for key, why in report.failed.items() if not may_pass(why)}
        key, reason = next(iter((lasting or report.failed).items()))
        what = f"{len(report.failed)} of {report.trials} trials failed, the first: {key}: {reason}."
        again = "Run the same command again: finished trials are kept."
        if lasting:
            part = "They" if len(lasting) == len(report.failed) else f"{len(lasting)} of them"
            again = (
                f"{part} raised the error themselves, and would again: change the spec. Finished "
                "trials that it still plans are kept."
            )
            if len(lasting) < len(report.failed):
                again += " The others may succeed if you run the same command again."
        raise TrialError(f"{what.replace('..', '.')} {again}")
    if report.unfinished:
        raise TrialError(
            f"{report.unfinished} of {report.trials} trials did not finish. Run the same command "
            "again: finished trials are kept."
        )
