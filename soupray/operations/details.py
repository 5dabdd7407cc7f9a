"""All that the store knows of one trial, or of one entry of the leaderboard (`soupray show`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from soupray.core.errors import NotFound
from soupray.core.findings import Report
from soupray.core.ports import TrackedRun
from soupray.core.records import Metric, Record
from soupray.core.trials import (
    EpochRecord,
    Freed,
    Ingredient,
    Manifest,
    Method,
    Tombstone,
    Trial,
)
from soupray.reporting.history import LEADERBOARD, RUNS, SoupRun, find_board, recipe_name
from soupray.reporting.ranking import Entry, Measured, measured
from soupray.search.history import Stopped, find_saved_epochs, search_key
from soupray.search.state import SweepState, find_state, known_trials
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import find_driver
from soupray.store.objects import Store, find_record, read_record

SHORTEST = 4
"""Number of characters from which on a name is read as the beginning of a key."""

TrialState = Literal["complete", "imported", "diverged", "stopped", "running", "failed", "missing"]


class Flag(Record, frozen=True, kw_only=True):
    """What `soupray check` found about a trial: severity, and two sentences."""

    severity: str
    what: str
    advice: str


class TrialDetail(Record, frozen=True, kw_only=True):
    """A trial with all that is known of it.

    Attributes:
        sweep: name of the sweep.
        key: of the trial.
        index: its number in the sweep, from 0.
        state: how it stands.
        method: fine-tuning, training of the head, or an import.
        hparams: its hyperparameters.
        seed: of its random draws.
        metric: that chooses the best epoch.
        held_out: scores of the stored weights; None without weights.
        reported: accuracy on test and shifts by name, once a soup has reported them.
        best_epoch: the epoch whose weights were kept.
        history: a record for each epoch that is known.
        seconds: from its start to its end.
        made_with: versions of the libraries, and the machine.
        weights: SHA-256 (hex) of the file of weights.
        size_bytes: of that file.
        file: URL of that file in the store.
        freed: when and by which `keep` its weights were let go; None if they were not.
        reason: why it diverged or failed.
        flags: what the last `soupray check` found; None if it did not look at this trial.
        coefficients: by entry of the newest leaderboard; None where an entry has no single one.
        use: commands that use the trial.
    """

    sweep: str
    key: str
    index: int
    state: TrialState
    method: Method
    hparams: dict[str, float | int | str]
    seed: int
    metric: Metric
    held_out: Measured | None = None
    reported: dict[str, float] = msgspec.field(default_factory=dict)
    best_epoch: int | None = None
    history: tuple[EpochRecord, ...] = ()
    seconds: float | None = None
    made_with: dict[str, str] = msgspec.field(default_factory=dict)
    weights: str | None = None
    size_bytes: int | None = None
    file: str | None = None
    freed: Freed | None = None
    reason: str | None = None
    flags: tuple[Flag, ...] | None = None
    coefficients: dict[str, float | None] = msgspec.field(default_factory=dict)
    use: tuple[str, ...] = ()


class Part(Record, frozen=True, kw_only=True):
    """An ingredient of an entry: the trial's key, or the name of a model that no trial trained.

    `coefficient` is None where each of several models has its own; `index` and `hparams` are those
    of the trial, if it is one of this sweep.
    """

    name: str
    coefficient: float | None
    index: int | None
    hparams: dict[str, float | int | str]


class EntryDetail(Record, frozen=True, kw_only=True):
    """An entry of the newest leaderboard with all that is known of it.

    Attributes:
        sweep: name of the sweep.
        run: key of the run of `soup`; None if an older version made the leaderboard.
        place: on the leaderboard, from 1.
        entries: number of entries.
        champion: whether it is the entry to take.
        entry: scores, gains, costs and options, as the leaderboard has them.
        parts: its ingredients.
        weights: SHA-256 (hex) of the file that `rebuild` writes; None for several models.
        files: URLs in the store.
        use: commands that use the entry.
    """

    sweep: str
    run: str | None
    place: int
    entries: int
    champion: bool
    entry: Entry
    parts: tuple[Part, ...]
    weights: str | None
    files: tuple[str, ...]
    use: tuple[str, ...]


class Newest(NamedTuple):
    """The newest leaderboard; no entries before the first soup."""

    entries: list[Entry]
    run: SoupRun | None


class _Recipe(msgspec.Struct):
    """What is shown of a recipe file. Other fields of the JSON are skipped, not decoded."""

    sha256: str | None


def find_detail(spec: SweepSpec, home: Path, named: str) -> TrialDetail | EntryDetail:
    """Return a trial or an entry of a sweep.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        named: an entry, the key of a trial, the unique beginning of one, or the trial's index.

    Raises:
        NotFound: nothing was swept with this spec, or nothing, or more than one thing, has this
            name.
    """
    store = find_place(spec, home).open_store()
    state = find_sweep_state(store, spec)
    board = newest(store, spec)
    trials = _all_trials(store, spec, state)
    entry = next((e for e in board.entries if e.name == named), None)
    if entry is not None:
        return _entry(store, spec, board, entry, trials)
    trial = _named(spec, named, trials, board.entries)
    return _trial(store, spec, state, board, trial)


def find_trial(store: Store, spec: SweepSpec, named: str) -> Trial:
    """Return the trial with this key, beginning of a key, or index. Raises NotFound.

    Args:
        store: the store.
        spec: the sweep.
        named: what a person wrote.
    """
    return _named(spec, named, _all_trials(store, spec, find_sweep_state(store, spec)), None)


def trial_detail(store: Store, spec: SweepSpec, state: SweepState, named: str) -> TrialDetail:
    """Return all that is known of the trial with this key, beginning of a key, or index.

    Args:
        store: the store.
        spec: the sweep.
        state: of the sweep.
        named: what a person wrote.

    Raises:
        NotFound: no trial, or more than one, has this name.
    """
    trial = _named(spec, named, _all_trials(store, spec, state), None)
    return _trial(store, spec, state, newest(store, spec), trial)


def find_sweep_state(store: Store, spec: SweepSpec) -> SweepState:
    """Return the state of the sweep of `spec`. Raises NotFound if nothing was swept with it."""
    state = find_state(store, spec)
    if state is None:
        raise NotFound(f"nothing was swept with this spec ({spec.name}) in {store.url}.")
    return state


def newest(store: Store, spec: SweepSpec) -> Newest:
    """Return the newest leaderboard of `spec`."""
    found = find_board(store, spec)
    return Newest([], None) if found is None else Newest(*found)


def _all_trials(store: Store, spec: SweepSpec, state: SweepState) -> list[Trial]:
    """Return the trials of the plan, stopped ones too, then the imports."""
    imported = [*(i.trial for i in state.imported), *state.lost]
    return [*known_trials(store, spec, state.basis), *imported]


def _named(spec: SweepSpec, named: str, trials: list[Trial], entries: list[Entry] | None) -> Trial:
    """Return the one trial that `named` may mean. Raises NotFound.

    Args:
        spec: the sweep.
        named: what a person wrote.
        trials: of the sweep.
        entries: the leaderboard, for the message; None: only a trial may be named.
    """
    found = [
        t
        for t in trials
        if (named.isdecimal() and int(named) == t.index)
        or (len(named) >= SHORTEST and t.key.startswith(named))
    ]
    exact = [t for t in found if t.key == named]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        several = ", ".join(f"{t.key} ({t.index})" for t in found[:6])
        raise NotFound(f"{named!r} may be {len(found)} trials of {spec.name}: {several}.")
    names = None if entries is None else [e.name for e in entries]
    raise NotFound(_unknown(spec, named, names, [t.key for t in trials]))


def _unknown(spec: SweepSpec, named: str, entries: list[str] | None, keys: list[str]) -> str:
    near = difflib.get_close_matches(named, entries or [], 4) + difflib.get_close_matches(
        named, keys, 2
    )
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    what = "no trial" if entries is None else "no trial and no entry"
    board = "; `soupray rank` lists the entries" if entries else "; there is no leaderboard yet"
    return (
        f"{spec.name} has {what} {named!r}.{meant} A trial is named by its key, its first "
        f"{SHORTEST} or more characters, or its index, as `soupray trials` prints them"
        f"{'' if entries is None else board}."
    )


def _trial(
    store: Store, spec: SweepSpec, state: SweepState, board: Newest, trial: Trial
) -> TrialDetail:
    manifest = next((m for m in state.manifests if m.trial.key == trial.key), None)
    used = _coefficients(trial.key, board.entries)
    known: dict[str, Any] = {
        "sweep": spec.name,
        "key": trial.key,
        "index": trial.index,
        "method": trial.method,
        "hparams": trial.hparams,
        "seed": trial.seed,
        "metric": trial.metric or "accuracy",
        "flags": _flags(store, spec, trial.key),
        "coefficients": used,
    }
    if manifest is None:
        return TrialDetail(**known, **_unfinished(store, spec, state, trial))
    over = _over(store, spec, manifest, board)
    return TrialDetail(**known, **over, freed=state.freed.get(trial.key))


def _over(store: Store, spec: SweepSpec, manifest: Manifest, board: Newest) -> dict[str, Any]:
    """Return what the manifest of a trial says."""
    said: dict[str, Any] = {
        "history": manifest.history,
        "seconds": manifest.finished - manifest.started,
    }
    if isinstance(manifest, Tombstone):
        return {**said, "state": "diverged", "reason": manifest.reason}
    key, weights = manifest.trial.key, manifest.checkpoint
    return {
        **said,
        "state": "imported" if manifest.trial.method == "imported" else "complete",
        "held_out": measured(manifest.held_out),
        "reported": _reported(store, spec, key),
        "best_epoch": manifest.best_epoch or None,  # an import has none
        "made_with": manifest.made_with,
        "weights": weights.sha256,
        "size_bytes": weights.size_bytes,
        "file": f"{store.url}/{layout.weights(weights.sha256)}",
        "use": _use_of_trial(spec, manifest, board),
    }


def _unfinished(store: Store, spec: SweepSpec, state: SweepState, trial: Trial) -> dict[str, Any]:
    """Return what is known of a trial without a manifest."""
    if trial.key in state.stopped:
        path = layout.stopped(spec.name, search_key(spec, state.basis), trial.key)
        record: Stopped = read_record(store, path, Stopped)
        return {"state": "stopped", "history": (record.last,)}
    driver = find_driver(store, spec.name)
    beat = driver.heartbeat.beat if driver and driver.heartbeat else None
    if beat is not None and trial.key in beat.failed:
        return {"state": "failed", "reason": beat.failed[trial.key]}
    runs = beat is not None and any(r.key == trial.key for r in beat.running)
    history = find_saved_epochs(store, trial.key)
    return {"state": "running" if runs else "missing", "history": history}


def _use_of_trial(spec: SweepSpec, made: Ingredient, board: Newest) -> tuple[str, ...]:
    """Return commands: a trial is used as the entry that is this model alone, if there is one."""
    alone = [e for e in board.entries if e.ingredients == [made.trial.key]]
    plain = next((e.name for e in alone if e.recipe == "best_single"), None)
    if plain is not None:
        return (f"soupray predict '{spec.name}:{plain}' INPUT...",)
    return ()


def _coefficients(key: str, entries: Iterable[Entry]) -> dict[str, float | None]:
    return {
        e.name: e.coefficients[e.ingredients.index(key)] if _has_one_each(e) else None
        for e in entries
        if key in e.ingredients
    }


def _has_one_each(entry: Entry) -> bool:
    return len(entry.coefficients) == len(entry.ingredients)


def _flags(store: Store, spec: SweepSpec, key: str) -> tuple[Flag, ...] | None:
    checked: Report | None = find_record(store, layout.check(spec.name), Report)
    if checked is None or key not in {
        *(row.trial for row in checked.ingredients),
        *(t for found in checked.findings for t in found.trials),
    }:
        return None
    return tuple(
        Flag(severity=f.severity, what=f.what, advice=f.advice)
        for f in checked.findings
        if key in f.trials
    )


def _reported(store: Store, spec: SweepSpec, key: str) -> dict[str, float]:
    """Return the accuracy on test and shifts, as the newest soup reported it."""
    path = layout.results_file(spec.name, RUNS)
    runs: list[TrackedRun] | None = find_record(store, path, list[TrackedRun])
    mine = next((r for r in runs or [] if r.key == f"{spec.name}/trial/{key}"), None)
    names = {} if mine is None else mine.metrics
    accuracy = {n.removeprefix("accuracy/"): v for n, v in names.items() if "accuracy/" in n}
    return {n: v for n, v in accuracy.items() if n != "held_out" and "/" not in n}


def _entry(
    store: Store, spec: SweepSpec, board: Newest, entry: Entry, trials: list[Trial]
) -> EntryDetail:
    folder = layout.results(spec.name)
    if board.run is not None:
        folder = f"{layout.leaderboards(spec.name)}/{board.run.key}"
    name = recipe_name(entry.name)
    recipe: _Recipe | None = find_record(store, f"{folder}/{name}", _Recipe)
    there = set(store.list(folder))
    files = [f"{folder}/{file}" for file in (name, LEADERBOARD, "robustness.png")]
    champion = board.run is not None and board.run.champion.name == entry.name
    known = {t.key: t for t in trials}
    shares = entry.coefficients if _has_one_each(entry) else [None] * len(entry.ingredients)
    weights = None if recipe is None else recipe.sha256
    return EntryDetail(
        sweep=spec.name,
        run=None if board.run is None else board.run.key,
        place=board.entries.index(entry) + 1,
        entries=len(board.entries),
        champion=champion,
        entry=entry,
        parts=tuple(
            Part(
                name=one,
                coefficient=share,
                index=known[one].index if one in known else None,
                hparams=known[one].hparams if one in known else {},
            )
            for one, share in zip(entry.ingredients, shares, strict=True)
        ),
        weights=weights,
        files=tuple(f"{store.url}/{file}" for file in files if file in there),
        use=_use_of_entry(spec, entry, champion, weights is not None),
    )


def _use_of_entry(
    spec: SweepSpec, entry: Entry, champion: bool, one_model: bool
) -> tuple[str, ...]:
    what = f"{spec.name}@champion" if champion else f"'{spec.name}:{entry.name}'"
    # A graph has one input; a server answers with one class.
    graph = entry.recipe != "vrf" and not (spec.data.kind == "captions" and spec.targets)
    written = "" if one_model else f" --format {'onnx' if graph else 'folder'}"
    served = () if spec.targets else (f"soupray serve {what}",)
    return (f"soupray predict {what} INPUT...", *served, f"soupray export {what}{written}")
