"""Write the results of a soup run into a folder, into the store and into the tracker."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from soupray.core.candidates import Candidate, Outcome, mean_of
from soupray.core.errors import CheckpointError, ConfigError, NotFound, TrackingError
from soupray.core.findings import Report
from soupray.core.names import inside, slug
from soupray.core.ports import Registered, TrackedRun, Tracker
from soupray.core.records import Basis, BlobRef, CheckpointRef, Scores, encode, encode_pretty
from soupray.core.trials import Pool
from soupray.recipes import Wanted
from soupray.reporting.champion import Champion, one_model
from soupray.reporting.details import DETAILS, Details
from soupray.reporting.history import (
    LEADERBOARD,
    RUN,
    RUNS,
    SoupRun,
    find_board,
    recipe_name,
    soup_runs,
    whole_key,
)
from soupray.reporting.model_folder import deployable
from soupray.reporting.plots import draw_all
from soupray.reporting.ranking import Entry, as_csv, names_of
from soupray.reporting.recipe_file import Foreign, RecipeFile
from soupray.reporting.report import ReportedBoard, render
from soupray.reporting.runs import (
    Board,
    entry_key,
    entry_run,
    sweep_run,
    trial_run,
    with_currency,
    with_flags,
)
from soupray.reporting.sections import stored_sections
from soupray.reporting.tracker import finish, is_tracked, open_tracker
from soupray.reporting.verdict import verdict
from soupray.search.state import find_state, prefixes_of
from soupray.services.place import Place, Services, find_place, start_services
from soupray.spec.files import atomic_write
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import Store, find_record, list_ours, read_record, read_view

log = logging.getLogger(__name__)

CHAMPION = "champion.json"
REPORT = "report.html"
SHOWN = (REPORT, LEADERBOARD, "leaderboard.csv", "robustness.png", "greedy_trace.png")
"""Files that the tracker shows with the run of the sweep."""


class SoupResult(NamedTuple):
    """All results of a soup run, best entry first.

    `key` names the leaderboard in the store. `weights` are those of the champion; None if it is an
    ensemble. `digests` are those of the files of weights, by the digest of the soup.
    """

    key: str
    recipes: Wanted
    entries: list[Entry]
    outcomes: list[Outcome]
    pool: Pool
    basis: Basis
    reported: dict[tuple[Candidate, str], Scores]
    champion: Champion
    details: Details
    weights: CheckpointRef | None
    digests: dict[str, str]
    statistics: dict[str, BlobRef]
    services: Services
    made: float
    foreign: dict[str, SweepSpec]


def finish_soup(result: SoupResult, spec: SweepSpec, home: Path, output: Path) -> list[Path]:
    """Write the results of a soup run: files first, then the tracker, which may fail.

    Args:
        result: the results of the run.
        spec: the spec under which the results are stored.
        home: folder for the state of this machine.
        output: local folder.

    Returns:
        Paths of the leaderboard, the figures and the weights.
    """
    files = write_results(result, spec, output)
    if is_tracked(spec, result.services):
        try:
            publish_soup(result, spec, home, files)
        except TrackingError as error:
            log.warning(f"{error}. Nothing is lost: `soupray publish` completes the index.")
    return files


def write_results(result: SoupResult, spec: SweepSpec, output: Path) -> list[Path]:
    """Write leaderboard, figures, recipe files and the champion to `output` and the store.

    The store keeps the files of every run. The weights are in the store already and are only copied
    to `output`.

    Args:
        result: the results of the run.
        spec: the spec under which the results are stored.
        output: local folder.

    Returns:
        Paths of the leaderboard, the figures and the weights.
    """
    output.mkdir(parents=True, exist_ok=True)
    earlier = recipes_in(output)
    files = {
        LEADERBOARD: encode_pretty(result.entries),
        "leaderboard.csv": as_csv(result.entries).encode(),
        RUNS: encode(tracked_runs(result, spec)),
        CHAMPION: encode(_registered(result, spec)),
        RUN: encode_pretty(_made(result)),
        DETAILS: encode(result.details),
        REPORT: render(board_of(result, spec)).encode(),
    }
    for outcome in result.outcomes:
        files[recipe_name(outcome.name)] = encode_pretty(_recipe(outcome, result, spec))
    for name, data in files.items():
        atomic_write(output / name, data)
    drawn = draw_all(output, result.details.robustness, result.details.greedy)
    store = result.services.place.open_store()
    for name in (*files, *drawn):
        data = (output / name).read_bytes()
        store.put(layout.leaderboard_file(spec.name, result.key, name), data)
        store.put(_in_store(spec, name), data)
    for old in list_ours(store, layout.results(spec.name)):
        if old.rpartition("/")[2] not in {*files, *drawn}:
            store.delete(old)
    remove_stale(output, earlier, {*files, *drawn})
    pictures = [path for path in drawn.values() if path.suffix == ".png"]
    shown = [*(output / name for name in (REPORT, LEADERBOARD, "leaderboard.csv")), *pictures]
    if result.weights is not None:
        place, name = result.services.place, result.champion.name
        shown.append(_copy_weights(place, result.weights.sha256, name, output))
    return shown


def recipes_in(output: Path) -> dict[Path, bytes]:
    """Return the content of the recipe files in a folder, by path."""
    return {path: path.read_bytes() for path in output.glob("*.recipe.json")}


def remove_stale(output: Path, earlier: dict[Path, bytes], current: set[str]) -> None:
    """Delete files of an earlier run with other recipes, so that they do not look current.

    Args:
        output: folder of the results.
        earlier: recipe files before this run, from `recipes_in`.
        current: names of the files of this run.
    """
    for recipe, data in earlier.items():
        if recipe.name not in current:
            recipe.unlink()
        if recipe.name not in current or recipe.read_bytes() != data:
            recipe.with_suffix("").with_suffix(".safetensors").unlink(missing_ok=True)
    for name in {*SHOWN, "robustness.svg", "greedy_trace.svg"} - current:
        (output / name).unlink(missing_ok=True)


def pull(spec: SweepSpec, home: Path, output: Path) -> list[Path]:
    """Copy the results of `spec` from the store into `output`.

    All files except the weights are read completely before the first one is written.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        output: local folder.

    Raises:
        NotFound: there are no results.
        CheckpointError: a file cannot be read.
    """
    place = find_place(spec, home)
    store = place.open_store()
    paths = list_ours(store, layout.results(spec.name))
    if not paths:
        raise NotFound(f"no results of {spec.name} in {store.url}: run `soupray soup` first.")
    views = {inside(output, path.rpartition("/")[2]): read_view(store, path) for path in paths}
    for path in paths:
        if path.endswith(".recipe.json"):
            read_record(store, path, RecipeFile)
    taken = find_record(store, _in_store(spec, CHAMPION), Registered)
    earlier = recipes_in(output)
    for target, data in views.items():
        atomic_write(target, data)
    remove_stale(output, earlier, {target.name for target in views})
    if taken is None or taken.sha256 is None:
        return list(views)
    return [*views, _copy_weights(place, taken.sha256, name_of(taken.entry), output)]


def stored_candidates(store: Store, spec: SweepSpec, key: str) -> tuple[str, dict[str, Candidate]]:
    """Return the key of a run, and its models by entry in the order of its leaderboard.

    Args:
        store: the store.
        spec: the sweep.
        key: of the run, or its first characters.

    Raises:
        NotFound: there is no such run.
    """
    whole = whole_key(store, spec, key)

    def file(name: str) -> str:
        return layout.leaderboard_file(spec.name, whole, name)

    entries = read_record(store, file(LEADERBOARD), list[Entry])
    recipes = (read_record(store, file(recipe_name(e.name)), RecipeFile) for e in entries)
    return whole, {recipe.name: recipe.candidate for recipe in recipes}


def stored_recipe(spec: SweepSpec, home: Path, entry: str | None) -> RecipeFile:
    """Return the recipe file of an entry on the newest leaderboard.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        entry: name of the entry; None for the champion.

    Raises:
        NotFound: there is no leaderboard, or no such entry.
    """
    store = find_place(spec, home).open_store()
    if entry is None:
        taken: Registered | None = find_record(store, _in_store(spec, CHAMPION), Registered)
        entry = None if taken is None else name_of(taken.entry)
    paths = [p for p in list_ours(store, layout.results(spec.name)) if p.endswith(".recipe.json")]
    if entry is None or not paths:
        raise NotFound(f"{spec.name} has no champion yet in {store.url}: run `soupray soup` first.")
    recipes = {recipe.name: recipe for recipe in (read_record(store, p, RecipeFile) for p in paths)}
    if entry not in recipes:
        raise NotFound(
            f"the leaderboard of {spec.name} has no entry {entry!r}. It has: "
            f"{', '.join(sorted(recipes))}."
        )
    found: RecipeFile = recipes[entry]
    return found


def recipe_of(board: ReportedBoard, home: Path, entry: str) -> RecipeFile:
    """Return the recipe file of an entry on a leaderboard, which need not be the newest one.

    Args:
        board: the leaderboard.
        home: folder for the state of this machine.
        entry: name of the entry.

    Raises:
        NotFound: there is no such entry.
    """
    names = [e.name for e in board.entries]
    if entry not in names:
        raise NotFound(
            f"this leaderboard of {board.spec.name} has no entry {entry!r}. It has: "
            f"{', '.join(names)}."
        )
    path = layout.leaderboard_file(board.spec.name, board.run.key, recipe_name(entry))
    store = find_place(board.spec, home).open_store()
    found: RecipeFile = read_record(store, path, RecipeFile)
    return found


def publish(spec: SweepSpec, home: Path) -> int:
    """Complete the tracker from the store, and return how many runs this sweep has.

    Runs that are already complete are not changed. Raises TrackingError, StoreError.
    """
    services = start_services(spec, home)
    store = services.place.open_store()
    runs = stored_runs(store, spec)
    tracker = open_tracker(spec, services)
    _index(tracker, runs)
    champion: Registered | None = find_record(store, _in_store(spec, CHAMPION), Registered)
    if champion is not None:
        try:
            model = deployable(stored_recipe(spec, home, None), lambda s: find_place(s, home))
        except ConfigError as error:  # an older soupray made it
            log.warning(f"the champion is not registered in MLflow: {error}")
        else:
            tracker.register(champion, model)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for path in store.list(layout.results(spec.name)):
            name = path.rpartition("/")[2]
            if name in SHOWN:
                files.append(Path(folder, name))
                files[-1].write_bytes(read_view(store, path))
        tracker.attach(spec.name, files)
    finish(tracker)
    return len(runs)


def stored_runs(store: Store, spec: SweepSpec) -> list[TrackedRun]:
    """Return all runs of a sweep that are in the store, parents first. Raises NotFound."""
    state = find_state(store, spec)
    if state is None:
        raise NotFound(f"nothing was swept with this spec ({spec.name}) in {store.url}.")
    manifests = state.manifests
    runs = {r.key: r for r in (trial_run(spec, m) for m in manifests)}
    newest = find_board(store, spec)  # of the last run of soup, also if it made nothing new
    last = newest[1] if newest else None
    made = sorted(soup_runs(store, spec), key=lambda run: run == last)  # the newest last
    boards = {layout.leaderboard_file(spec.name, r.key, RUNS): r for r in made}
    for path in boards or [_in_store(spec, RUNS)]:  # older versions wrote no other
        souped: list[TrackedRun] | None = find_record(store, path, list[TrackedRun])
        for run in souped or []:
            if run.parent != spec.name or not run.key.startswith(f"{spec.name}/"):
                raise CheckpointError(
                    f"{path} in {store.url} has the run {run.key!r}, which is not one of "
                    f"{spec.name}: it was copied there, or edited. Run `soupray soup` again."
                )
            runs[run.key] = with_currency(run, boards.get(path) == last)
    started = min((m.started for m in manifests), default=0.0)
    finished = max((m.finished for m in manifests), default=None)
    checked: Report | None = find_record(store, layout.check(spec.name), Report)
    found = [with_flags(run, checked.findings if checked else ()) for run in runs.values()]
    board = Board(newest[0], last.champion) if newest and last else None
    prefixes = prefixes_of(store, spec, state.basis)
    return [sweep_run(spec, started, finished, board, prefixes), *found]


def publish_soup(result: SoupResult, spec: SweepSpec, home: Path, files: list[Path]) -> None:
    """Write the runs, the figures and the champion of a soup into the tracker.

    Args:
        result: the results of the run.
        spec: the spec of the sweep.
        home: folder for the state of this machine.
        files: local files; those in SHOWN are attached.

    Raises:
        TrackingError: the tracker cannot be reached.
    """
    tracker = open_tracker(spec, result.services)
    _index(tracker, stored_runs(result.services.place.open_store(), spec))
    tracker.attach(spec.name, [p for p in files if p.name in SHOWN])
    taken = next(o for o in result.outcomes if o.name == result.champion.name)
    recipe = _recipe(taken, result, spec)
    model = deployable(recipe, lambda other: find_place(other, home))
    tracker.register(_registered(result, spec), model)
    finish(tracker)


def board_of(result: SoupResult, spec: SweepSpec) -> ReportedBoard:
    """Return the leaderboard of a soup run, with all that a report shows.

    Args:
        result: the results of the run.
        spec: the spec under which they are stored.
    """
    store = result.services.place.open_store()
    sections = stored_sections(store, spec.name, result.key)
    prefixes = tuple(prefixes_of(store, spec, result.basis))
    made = _made(result)
    return ReportedBoard(
        spec, result.entries, result.basis, made, result.details, sections, prefixes
    )


def _made(result: SoupResult) -> SoupRun:
    return SoupRun(
        key=result.key,
        made=result.made,
        recipes=result.recipes,
        ingredients=len(result.pool.ingredients),
        entries=len(result.entries),
        champion=result.champion,
    )


def _registered(result: SoupResult, spec: SweepSpec) -> Registered:
    """Return the champion as an entry of the model registry."""
    entry = next(e for e in result.entries if e.name == result.champion.name)
    storage, weights = result.services.place.storage, result.weights
    file = layout.leaderboard_file(spec.name, result.key, recipe_name(entry.name))
    return Registered(
        model=f"soupray-{spec.name}",
        entry=entry_key(spec, result.key, entry.name),
        candidate=entry.candidate,
        weights=None if weights is None else f"{storage}/{layout.weights(weights.sha256)}",
        sha256=None if weights is None else weights.sha256,
        size_bytes=entry.size_bytes,
        recipe=f"{storage}/{file}",
        description="\n\n".join(
            verdict(result.entries, result.champion, spec.name, spec.metric).lines
        ),
    )


def name_of(key: str) -> str:
    """Return the name of the entry with this key in the tracker."""
    return key.rpartition("/")[2]


def _index(tracker: Tracker, runs: list[TrackedRun]) -> None:
    """Write `runs`, and remove entries that no leaderboard in the store has."""
    tracker.write(runs)
    tracker.keep("entry", {run.key for run in runs})


def tracked_runs(result: SoupResult, spec: SweepSpec) -> list[TrackedRun]:
    """Return the runs of the entries, and of the ingredients with their test and shift scores."""
    runs = []
    for ingredient, facts in zip(result.pool.ingredients, result.details.trials, strict=True):
        candidate = mean_of([ingredient.checkpoint.sha256])
        shifts = {
            s.name: result.reported[candidate, s.name]
            for s in result.basis.reported
            if s.role == "shift"
        }
        test = result.reported[candidate, "test"]
        run = trial_run(spec, ingredient, test, shifts, result.entries)
        worth = {"leave_one_out/held_out_nll": facts.leave_one_out}
        runs.append(msgspec.structs.replace(run, metrics=run.metrics | worth))
    by_name = {o.name: o for o in result.outcomes}
    for rank, entry in enumerate(result.entries, 1):
        outcome = by_name[entry.name]
        runs.append(entry_run(spec, result.key, entry, outcome, rank, result.made))
    return runs


def _recipe(outcome: Outcome, result: SoupResult, spec: SweepSpec) -> RecipeFile:
    names, of, members = names_of(result.pool), result.digests, outcome.candidate.members
    entry = next(e for e in result.entries if e.name == outcome.name)
    return RecipeFile(
        name=outcome.name,
        recipe=outcome.recipe,
        options=outcome.options,
        candidate=outcome.candidate,
        ingredients={sha: names[sha] for sha in outcome.candidate.checkpoints},
        statistics={
            m.digest: result.statistics[m.digest] for m in members if m.digest in result.statistics
        },
        sha256=None if one_model(outcome.candidate) is None else of[outcome.candidate.digest],
        spec=spec.model_dump(mode="json"),
        foreign=_foreign(outcome, result),
        digests={m.digest: of[m.digest] for m in members if m.digest in of},
        shape=result.basis.shape,
        temperature=entry.calibrated.temperature if entry.calibrated else None,
        thresholds=entry.thresholds or None,
    )


def _foreign(outcome: Outcome, result: SoupResult) -> tuple[Foreign, ...]:
    """Return the checkpoints of an outcome that come from other pools, grouped by spec."""
    found: dict[str, Foreign] = {}
    for sha in outcome.candidate.checkpoints:
        spec = result.foreign.get(sha)
        if spec is not None:
            known = found[spec.name].checkpoints if spec.name in found else ()
            found[spec.name] = Foreign(checkpoints=(*known, sha), spec=spec.model_dump(mode="json"))
    return tuple(found.values())


def _in_store(spec: SweepSpec, name: str) -> str:
    return layout.results_file(spec.name, name)


def _copy_weights(place: Place, sha256: str, name: str, output: Path) -> Path:
    checkpoints = Checkpoints(place.open_store(), place.folder / "weights")
    target = inside(output, f"{slug(name)}.safetensors")
    shutil.copyfile(checkpoints.fetch(sha256), target)
    return target
