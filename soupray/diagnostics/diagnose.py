"""Measure the models of a sweep (`soupray diagnose`), after all choices are made."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from soupray.core.candidates import WeightCandidate, as_trained
from soupray.core.errors import ConfigError
from soupray.core.progress import Show
from soupray.core.records import Record, Split, digest, encode, encode_pretty
from soupray.diagnostics.measure import Board, CannotMeasure, Inputs, Measure, Options
from soupray.diagnostics.measures import MEASURES, find_measures
from soupray.diagnostics.samples import DecodedSamples
from soupray.evaluation.live_model import EVALUATION_VERSION, STATISTICS_SAMPLES
from soupray.reporting.history import find_board
from soupray.reporting.report import render, stored_board
from soupray.reporting.results import stored_candidates
from soupray.reporting.sections import SECTIONS, Section, draw_figures, stored_sections
from soupray.soup.check import refuse_or_note
from soupray.soup.session import Session, open_session, watched
from soupray.spec.files import atomic_write, path_of, read_text
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import create_record, find_record

log = logging.getLogger(__name__)

AT_A_TIME = 16
"""Requests that are answered between two updates of the progress line."""

NUMBERS, PAGE = "diagnostics.json", "report.html"


class Asked(NamedTuple):
    """What the user asks for.

    Attributes:
        only: names of measures; none for all.
        partial: continue without the trials that are missing.
        options: of the measures.
    """

    only: Sequence[str] = ()
    partial: bool = False
    options: Options = Options()


ALL = Asked()


class Diagnostics(Record, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        leaderboard: key of the run of `soup` whose entries were measured; None without one.
        measures: the numbers of each measure, by its name: see `Measure.record`.
        left_out: why a measure does not apply, by its name.
    """

    leaderboard: str | None
    measures: dict[str, Any]
    left_out: dict[str, str]


class Planned(Record, frozen=True, kw_only=True):
    """A measure before it runs.

    Attributes:
        name, summary, paper: of the measure.
        stored: its numbers are stored: it computes nothing.
        passes: runs of one model over a split, or over a part of it, that are not stored yet.
        samples: samples in all of these runs, at most, and those on which BatchNorm statistics
            are estimated.
        left_out: why it does not apply; None if it does.
    """

    name: str
    summary: str
    paper: str
    stored: bool
    passes: int
    samples: int
    left_out: str | None


def run_diagnose(
    spec: SweepSpec,
    home: Path,
    address: str | None,
    asked: Asked = ALL,
    show: Show | None = None,
) -> Diagnostics:
    """Measure the models of `spec`: its trials, and the entries of its newest leaderboard.

    The numbers are stored under a digest of their inputs, so that a second run computes nothing.
    Sections for the report are stored beside the leaderboard.

    Args:
        spec: the sweep whose trials are the pool.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        asked: which measures, of what.
        show: shows the progress.

    Raises:
        ConfigError: there is no such measure.
        EvaluationError: no ingredients, or NaN weights.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    wanted = find_measures(asked.only)
    with open_session([spec], home, address, asked.partial, show, "diagnose") as session:
        inputs = inputs_of(session, spec, asked.options)
        reasons = {m.name: m.left_out(inputs) for m in wanted}
        found: dict[str, Any] = {}
        left = {name: why for name, why in reasons.items() if why is not None}
        due = [m for m in wanted if m.name not in left]
        if any(_stored(session, m, inputs) is None for m in due):
            for finding in refuse_or_note(session):
                log.warning(f"{finding.what}. {finding.advice}.")
        for measure in due:
            try:
                found[measure.name] = _measured(session, measure, inputs)
            except CannotMeasure as error:
                left[measure.name] = str(error)
        if inputs.board is not None:
            _keep_sections(session, spec, inputs.board, found)
    return Diagnostics(
        leaderboard=None if inputs.board is None else inputs.board.key,
        measures=found,
        left_out={m.name: left[m.name] for m in wanted if m.name in left},
    )


def plan_diagnose(spec: SweepSpec, home: Path, asked: Asked = ALL) -> list[Planned]:
    """Return what `run_diagnose` would compute; nothing is computed.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        asked: which measures, of what.
    """
    wanted = find_measures(asked.only)
    with open_session([spec], home, None, asked.partial) as session:
        inputs = inputs_of(session, spec, asked.options)
        return [_planned(session, measure, inputs) for measure in wanted]


def inputs_of(session: Session, spec: SweepSpec, options: Options) -> Inputs:
    """Return what measures may see, with the newest leaderboard if there is one.

    Args:
        session: the pool and its evaluator.
        spec: of the sweep.
        options: of the measures.
    """
    found, board = find_board(session.store, spec), None
    if found is not None and found[1] is not None:
        entries, run = found[0], found[1]
        _, models = stored_candidates(session.store, spec, run.key)
        board = Board(run.key, tuple(entries), models, run.champion.name)
    return Inputs(
        spec=spec,
        pool=session.pool,
        basis=session.basis,
        board=board,
        answers=session.evaluator,
        options=options,
        samples=DecodedSamples(spec, session.services.place.folder / "data"),
        slices={name: members_of(name, said) for name, said in spec.slices.items()},
    )


def members_of(name: str, said: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the samples of a slice. Raises ConfigError if its file cannot be read."""
    if not isinstance(said, str):
        return said
    try:
        lines = read_text(path_of(said, f"slices.{name}")).splitlines()
    except ConfigError as error:
        raise ConfigError(f"slices.{name}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _path(measure: Measure[Any], inputs: Inputs) -> str:
    """Return the path of a measure's numbers, from a digest of all their inputs."""
    pool, board = inputs.pool, inputs.board
    parts: list[object] = [
        measure.name,
        measure.version,
        [(i.trial.key, i.checkpoint.sha256) for i in pool.ingredients],
        pool.init.sha256,
        inputs.held_out.digest,
        inputs.basis.split("train").digest,
        inputs.spec.setting,
        inputs.spec.seed,
        EVALUATION_VERSION,
        measure.depends(inputs),
    ]
    if measure.after_soup and board is not None:
        models = [(name, model.digest) for name, model in board.models.items()]
        parts += [board.champion, models, [s.digest for s in inputs.basis.reported]]
    return layout.diagnosis(inputs.spec.name, digest(parts)[:32])


def _stored(session: Session, measure: Measure[Any], inputs: Inputs) -> Any:
    return find_record(session.store, _path(measure, inputs), measure.record)


def _measured(session: Session, measure: Measure[Any], inputs: Inputs) -> Any:
    """Return the stored numbers of a measure, or compute and store them."""
    known = _stored(session, measure, inputs)
    if known is not None:
        return known
    needed, evaluator = measure.needs(inputs), session.evaluator
    asked: dict[Split, list[Any]] = {}
    for request, split, _ in needed.requests:
        asked.setdefault(split, []).append(request)
    due = sum(len({m for c in models for m in c.members}) for models, _ in needed.models)
    total = due + len(needed.requests)
    with watched(evaluator, f"measuring {measure.name}", total, session.show) as progress:
        for models, split in needed.models:
            evaluator.fill(models, [split])  # at once, because Ray distributes models
        for split, requests in asked.items():
            for at in range(0, len(requests), AT_A_TIME):
                part = requests[at : at + AT_A_TIME]
                evaluator.measure(part, split)
                progress.advance(len(part))
        progress.finish()
    return create_record(session.store, _path(measure, inputs), measure.compute(inputs))


def _planned(session: Session, measure: Measure[Any], inputs: Inputs) -> Planned:
    why, passes, samples = measure.left_out(inputs), 0, 0
    stored = why is None and _stored(session, measure, inputs) is not None
    if why is None and not stored:
        needed, evaluator = measure.needs(inputs), session.evaluator
        unknown = [(evaluator.unknown(models, on), on.size) for models, on in needed.models]
        counts = [(len(models), size) for models, size in unknown]
        asked = [(n, on.size) for one, on, n in needed.requests if not evaluator.knows(one, on)]
        passes = sum(n for n, _ in counts) + sum(math.ceil(n / size) for n, size in asked)
        samples = sum(n * size for n, size in counts) + sum(n for n, _ in asked)
        passes, samples = passes + bool(needed.unlisted), samples + needed.unlisted
        samples += _estimated(session, {m for models, _ in unknown for m in models})
    return Planned(
        name=measure.name,
        summary=measure.summary,
        paper=measure.paper,
        stored=stored,
        passes=passes,
        samples=samples,
        left_out=why,
    )


def _estimated(session: Session, models: set[WeightCandidate]) -> int:
    """Return the training samples on which BatchNorm statistics of `models` are estimated."""
    if not session.pool.moved:
        return 0
    due = {m for m in models if not as_trained(m)}
    known = session.evaluator.statistics(due)
    each = min(STATISTICS_SAMPLES, session.basis.split("train").size)
    return each * sum(m.digest not in known for m in due)


def sections_of(made: Diagnostics) -> list[Section]:
    """Return the sections of the measures, in their order."""
    return [m.section(made.measures[m.name]) for m in MEASURES if m.name in made.measures]


def _keep_sections(session: Session, spec: SweepSpec, board: Board, found: dict[str, Any]) -> None:
    """Store the sections beside the leaderboard; those of measures that did not run stay."""
    kept = {s.name: s for s in stored_sections(session.store, spec.name, board.key)}
    kept |= {m.name: m.section(found[m.name]) for m in MEASURES if m.name in found}
    ordered = [kept[m.name] for m in MEASURES if m.name in kept]
    path = layout.leaderboard_file(spec.name, board.key, SECTIONS)
    session.store.put(path, encode(ordered))


def write_diagnosis(made: Diagnostics, output: Path) -> list[Path]:
    """Write the numbers as JSON, draw the figures, and return the paths.

    Args:
        made: what was measured.
        output: local folder.
    """
    atomic_write(output / NUMBERS, encode_pretty(made))
    figures = [figure for section in sections_of(made) for figure in section.figures]
    return [output / NUMBERS, *draw_figures(figures, output)]


def write_report(spec: SweepSpec, home: Path, made: Diagnostics, output: Path) -> list[Path]:
    """Write the report of the leaderboard again, with the new sections; none without leaderboard.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        made: what was measured.
        output: local folder.
    """
    if made.leaderboard is None:
        return []
    page = render(stored_board(spec, home, made.leaderboard))
    atomic_write(output / PAGE, page.encode())
    return [output / PAGE]
