"""Open the pool of a spec with its store and evaluator, for soups, checks and diagnoses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from soupray.core.candidates import Candidate
from soupray.core.errors import EvaluationError
from soupray.core.progress import Progress, Show
from soupray.core.records import Basis
from soupray.core.requests import Body
from soupray.core.trials import Pool, Tombstone, pool_of
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator, Workers
from soupray.evaluation.evidence import check_scores
from soupray.evaluation.freed import Guarded
from soupray.search.prefixes import enough_said
from soupray.search.state import SweepState, find_state
from soupray.services.place import Services, start_services
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import Store, check_bucket, read_record
from soupray.store.presence import Presence

log = logging.getLogger(__name__)


class Session(NamedTuple):
    """A pool, and everything that is needed to evaluate its models.

    `diverged`: trials of the first spec that are not ingredients. `foreign`: for each checkpoint of
    another pool, its spec. `freed`: for each checkpoint that was let go, the key of its trial.
    """

    services: Services
    store: Store
    pool: Pool
    basis: Basis
    diverged: tuple[Tombstone, ...]
    evaluator: StoredEvaluator
    foreign: dict[str, SweepSpec]
    show: Show | None = None
    freed: Mapping[str, str] = MappingProxyType({})

    def bodies(self, candidates: Sequence[Candidate]) -> dict[str, str]:
        """Return the digest of the body of each checkpoint in the ensembles of `candidates`.

        Empty if no trial trained only the head. Checkpoints of other specs are left out, because
        those specs may prepare the inputs in another way.

        Args:
            candidates: models; those with one member are ignored.
        """
        if all(i.trial.method != "lp" for i in self.pool.ingredients):
            return {}
        shas = {sha for c in candidates if len(c.members) > 1 for sha in c.checkpoints}
        asked = [Body(checkpoint=sha) for sha in sorted(shas - set(self.foreign))]
        found = self.evaluator.measure(asked, self.basis.split("held_out"))
        return {one.checkpoint: body for one, body in zip(asked, found, strict=True)}


@contextmanager
def watched(
    evaluator: StoredEvaluator, what: str, total: int, show: Show | None
) -> Iterator[Progress]:
    """Show a progress line that counts the evaluations of `evaluator`.

    Args:
        evaluator: the evaluator.
        what: name of the progress.
        total: number of evaluations that are expected.
        show: shows the progress.
    """
    with Progress(what, total, show) as progress:
        evaluator.on_result = progress.advance
        try:
            yield progress
        finally:
            evaluator.on_result = lambda count: None


@contextmanager
def open_session(
    specs: Sequence[SweepSpec],
    home: Path,
    address: str | None,
    partial: bool,
    show: Show | None = None,
    what: str | None = None,
) -> Iterator[Session]:
    """Open the pool of a spec. Ray starts only when a result is not in the store.

    Args:
        specs: the sweep whose trials are the pool, and others on the same data. Their ingredients
            join the pool; they can be used in ensembles, but not averaged.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        partial: continue without the trials that are missing.
        show: shows the progress of the work in the session.
        what: the verb that works, so that `soupray status` shows it and `soupray stop` ends it.
            None: it only reads.

    Raises:
        EvaluationError: no ingredients, some are missing and `partial` is false, other data in the
            other specs, or somebody asked this work to stop.
        IncompatibleWeights: an ingredient did not start from the theta_0 of its pool.
        StoreError: the store cannot be reached.
    """
    with _opened(specs, home, address, partial, show, what) as (pools, sites, follow):
        mine, *theirs = pools
        joined, foreign = _joined(mine, theirs)
        yield _session(mine, sites[0], follow)._replace(
            pool=joined,
            evaluator=StoredEvaluator(sites[0], {sha: sites[1 + k] for sha, k in foreign.items()}),
            foreign={sha: specs[1 + k] for sha, k in foreign.items()},
            freed={sha: key for of in pools for sha, key in of.freed.items()},
        )


@contextmanager
def open_apart(
    specs: Sequence[SweepSpec],
    home: Path,
    address: str | None,
    partial: bool,
    show: Show | None = None,
    what: str | None = None,
) -> Iterator[list[Session]]:
    """Open the pools of specs as a session each: nothing is joined, and the data may differ.

    The sessions share the workers. The arguments are those of `open_session`, and the errors, but
    that other data are no error.
    """
    with _opened(specs, home, address, partial, show, what) as (pools, sites, follow):
        yield [_session(of, site, follow) for of, site in zip(pools, sites, strict=True)]


@contextmanager
def _opened(
    specs: Sequence[SweepSpec],
    home: Path,
    address: str | None,
    partial: bool,
    show: Show | None,
    what: str | None,
) -> Iterator[tuple[list[SpecPool], list[Site], Show]]:
    from soupray.distributed import cluster
    from soupray.distributed.actors import Actors, RayWorkers

    with cluster.when_needed(address, *specs) as attach, ExitStack() as stack:
        pools = [_spec_pool(s, home, partial) for s in specs]
        here = [Presence(of.store, of.spec.name, what) for of in pools if what is not None]
        for presence in here:
            stack.enter_context(presence)
        actors = Actors(specs, attach, lambda: _refuse_stop(here))

        def site(of: SpecPool) -> Site:
            workers: Workers = RayWorkers(of.spec, of.services.place, actors)
            if of.freed:
                workers = Guarded(workers, of.freed)
            return Site(workers, of.cache, of.spec.setting)

        yield pools, [site(of) for of in pools], lambda progress: _follow(progress, here, show)


def _session(of: SpecPool, site: Site, show: Show) -> Session:
    return Session(
        services=of.services,
        store=of.store,
        pool=of.pool,
        basis=of.basis,
        diverged=of.diverged,
        evaluator=StoredEvaluator(site),
        foreign={},
        show=show,
        freed=of.freed,
    )


def _refuse_stop(here: Sequence[Presence]) -> None:
    for presence in here:
        presence.refuse_stop()


def _follow(progress: Progress, here: Sequence[Presence], show: Show | None) -> None:
    for presence in here:
        presence.follow(progress)
    if show is not None:
        show(progress)


class SpecPool(NamedTuple):
    """The pool, store and cache of one spec in a session; `freed` as in `Session`."""

    spec: SweepSpec
    services: Services
    store: Store
    pool: Pool
    basis: Basis
    diverged: tuple[Tombstone, ...]
    cache: EvaluationCache
    freed: dict[str, str]


def _spec_pool(spec: SweepSpec, home: Path, partial: bool) -> SpecPool:
    services = start_services(spec, home)
    place = services.place
    check_bucket(place.storage, place.read_credentials())
    store = place.open_store()
    pool, state = find_pool(store, spec, partial)
    basis = state.basis
    checkpoints = Checkpoints(store, place.folder / "weights")
    check_scores(pool.ingredients, basis.split("held_out"), checkpoints)
    cache = EvaluationCache(checkpoints, spec.setting, basis.split("train"))
    cache.add(pool.ingredients)
    freed = {one.checkpoint.sha256: key for key, one in state.freed.items()}
    if freed:
        log.info(
            f"{len(freed)} of {len(pool.ingredients)} ingredients have no weights any more (`keep` "
            "in the spec): their stored logits are used."
        )
    return SpecPool(spec, services, store, pool, basis, tuple(state.diverged), cache, freed)


def _joined(mine: SpecPool, theirs: Sequence[SpecPool]) -> tuple[Pool, dict[str, int]]:
    """Return one pool of all ingredients, and for each new checkpoint which of `theirs` has it."""
    ingredients = {i.checkpoint.sha256: i for i in mine.pool.ingredients}
    foreign: dict[str, int] = {}
    for k, other in enumerate(theirs):
        refuse_other_data(mine, other)
        new = {i.checkpoint.sha256: i for i in other.pool.ingredients}
        foreign |= {sha: k for sha in new if sha not in ingredients}
        ingredients = new | ingredients
    return pool_of(mine.basis, list(ingredients.values())), foreign


def refuse_other_data(mine: SpecPool, other: SpecPool) -> None:
    """Raise EvaluationError unless both pools have equal classes and equal data in each split."""
    names = (mine.spec.name, other.spec.name)
    labels = [p.spec.task.classes for p in (mine, other)]
    if labels[0] != labels[1]:
        differ = [pair for pair in zip(*labels, strict=False) if pair[0] != pair[1]]
        what = f"{differ[0][0]!r} and {differ[0][1]!r}" if differ else "in number"
        raise EvaluationError(
            f"{names[0]} and {names[1]} have different classes ({what}): outputs of their models "
            "cannot be mixed. Name the classes alike and in the same order in both specs."
        )
    theirs = {s.name: s for s in other.basis.splits}
    for split in mine.basis.splits:
        if split.name not in theirs:
            raise _split_lacks(names[1], names[0], split.name)
        if theirs[split.name].digest != split.digest:
            raise EvaluationError(
                f"split {split.name} of {names[0]} ({split.digest[:12]}) is not that of {names[1]} "
                f"({theirs[split.name].digest[:12]}): write the same data, seed and held_out in "
                "both specs."
            )
    extra = sorted(set(theirs) - {s.name for s in mine.basis.splits})
    if extra:
        raise _split_lacks(names[0], names[1], extra[0])


def _split_lacks(one: str, other: str, split: str) -> EvaluationError:
    return EvaluationError(
        f"{one} has no split {split}, but {other} has it: their models cannot be compared there. "
        "Write the same data and shifts in both specs."
    )


def find_pool(store: Store, spec: SweepSpec, partial: bool) -> tuple[Pool, SweepState]:
    """Return the pool of `spec` and the state of its sweep.

    Args:
        store: the store.
        spec: the sweep.
        partial: continue without the trials that are missing.

    Raises:
        EvaluationError: the pool is empty, or trials are missing and `partial` is false.
    """
    state = find_state(store, spec)
    if state is None:
        raise EvaluationError(
            f"nothing was swept with this spec ({spec.name}) in {store.url}. "
            f"{_edits(store, spec)}Run `soupray sweep` first."
        )
    if state.unsuggested and not partial:
        raise EvaluationError(
            f"{state.unsuggested} of {spec.search.trials} trials were not suggested yet: the sweep "
            "is not over. Run `soupray sweep` to go on, or add --partial to leave them out."
        )
    if state.enough is not None and state.spared:
        log.info(f"{enough_said(state.enough)}: {len(state.spared)} others were not trained.")
    for tombstone in state.diverged:
        log.info(f"trial {tombstone.trial.key} diverged and is left out: {tombstone.reason}.")
    if state.missing or state.lost:
        _missing(store, spec, state, partial)
    if not state.known:
        raise EvaluationError(
            f"the pool of {spec.name} is empty: it plans no trials (search.trials = 0), and "
            "nothing was imported. Run `soupray import` with its checkpoints."
        )
    if not state.ingredients:
        raise EvaluationError(
            f"the pool of {spec.name} is empty: all {state.known} trials diverged. Lower the "
            "learning rates of the search space and sweep again."
        )
    if len(state.ingredients) == 1:
        log.warning("the pool has one ingredient: every soup of it is that model.")
    return pool_of(state.basis, state.ingredients), state


def _missing(store: Store, spec: SweepSpec, state: SweepState, partial: bool) -> None:
    missing = [*state.missing, *state.lost]
    keys = ", ".join(t.key for t in missing[:8]) + (" ..." if len(missing) > 8 else "")
    message = f"{len(missing)} of {state.known} trials are not in the store: {keys}. "
    if not partial or not state.ingredients:
        raise EvaluationError(
            f"{message}{_edits(store, spec)}Run `soupray sweep` to train them, or say --partial to "
            "go on without them."
        )
    log.warning(f"{message}Going on without them (--partial).")


def _edits(store: Store, spec: SweepSpec) -> str:
    """Return the fields of the spec that were edited since the sweep ran, as text.

    Empty if this spec itself was swept: then edits do not explain missing trials.
    """
    known = store.list(layout.specs(spec.name))
    mine = _flat(spec.model_dump(mode="json"))
    diffs = []
    for path in known:
        if path.endswith(f"/{spec.digest}.json"):
            return ""
        theirs = _flat(read_record(store, path, dict))
        diffs.append([k for k in sorted(mine.keys() | theirs) if mine.get(k) != theirs.get(k)])
    if not diffs:
        return ""
    fields = ", ".join(min(diffs, key=len)[:6])
    return f"The spec was edited since the sweep ran ({fields}), which plans other trials. "


def _flat(data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, object] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
