"""Measure the models of a sweep (`soupray diagnose`), after all choices are made."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from soupray.core.candidates import WeightCandidate, as_trained
from soupray.core.errors import ConfigError
from soupray.core.progress import Progress, Show
from soupray.core.records import Record, Split, digest, encode, encode_pretty
from soupray.diagnostics.annotations import read_annotations
from soupray.diagnostics.baseline import read_baseline
from soupray.diagnostics.families import FAMILIES
from soupray.diagnostics.matching import refuse_unlike
from soupray.diagnostics.measure import (
    Board,
    CannotMeasure,
    Inputs,
    Measure,
    Needed,
    Options,
)
from soupray.diagnostics.measures import MEASURES, find_measures
from soupray.diagnostics.samples import DecodedSamples
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.evaluation.live_model import EVALUATION_VERSION, STATISTICS_SAMPLES
from soupray.reporting.history import find_board
from soupray.reporting.report import render, stored_board
from soupray.reporting.results import stored_candidates
from soupray.reporting.sections import SECTIONS, Section, draw_figures, stored_sections
from soupray.soup.check import refuse_or_note
from soupray.soup.session import Session, open_apart, watched
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
        others: specs whose models are compared with those of the sweep.
    """

    only: Sequence[str] = ()
    partial: bool = False
    options: Options = Options()
    others: Sequence[SweepSpec] = ()


ALL = Asked()


def read_options(pairs: int, baseline: Path | None, annotations: Sequence[Path]) -> Options:
    """Return the options of the measures, with the files that they name.

    Args:
        pairs: largest number of pairs of models that are evaluated.
        baseline: file of standard models' accuracies; None: the pool's own trials.
        annotations: files in which people judge answers.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    standard = None if baseline is None else read_baseline(baseline)
    return Options(pairs=pairs, baseline=standard, annotations=read_annotations(annotations))


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
        ConfigError: there is no such measure, or another spec has other classes.
        EvaluationError: no ingredients, NaN weights, or another spec has other samples.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    wanted = _wanted(spec, asked)
    specs = [spec, *asked.others]
    with open_apart(specs, home, address, asked.partial, show, "diagnose") as sessions:
        inputs = _all_inputs(sessions, specs, asked.options)
        found, left = _measured_all(sessions, wanted, inputs)
        if inputs.board is not None:
            _keep_sections(sessions[0], spec, inputs.board, found)
    return Diagnostics(
        leaderboard=None if inputs.board is None else inputs.board.key,
        measures=found,
        left_out={m.name: left[m.name] for m in wanted if m.name in left},
    )


def _measured_all(
    sessions: Sequence[Session], wanted: Sequence[Measure[Any]], inputs: Inputs
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the numbers of the measures that apply, and why others do not, by name."""
    found: dict[str, Any] = {}
    reasons = {m.name: m.left_out(inputs) for m in wanted}
    left = {name: why for name, why in reasons.items() if why is not None}
    due = [m for m in wanted if m.name not in left]
    if any(_stored(sessions[0], m, inputs) is None for m in due):
        for finding in refuse_or_note(sessions[0]):
            log.warning(f"{finding.what}. {finding.advice}.")
    for measure in due:
        try:
            found[measure.name] = _measured(sessions, measure, inputs)
        except CannotMeasure as error:
            left[measure.name] = str(error)
    return found, left


def plan_diagnose(spec: SweepSpec, home: Path, asked: Asked = ALL) -> list[Planned]:
    """Return what `run_diagnose` would compute; nothing is computed.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        asked: which measures, of what.
    """
    wanted = _wanted(spec, asked)
    specs = [spec, *asked.others]
    with open_apart(specs, home, None, asked.partial) as sessions:
        inputs = _all_inputs(sessions, specs, asked.options)
        return [_planned(sessions, measure, inputs) for measure in wanted]


def _wanted(spec: SweepSpec, asked: Asked) -> tuple[Measure[Any], ...]:
    """Return the measures that are asked for. Raises ConfigError if the specs do not fit them."""
    wanted = find_measures(asked.only)
    names = [spec.name, *(other.name for other in asked.others)]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"the specs are named {', '.join(names)}: specs that are compared need a name each."
        )
    if asked.others and FAMILIES not in wanted:
        raise ConfigError(
            f"other specs are compared by the measure {FAMILIES.name}, which is left out here: "
            f"add --only {FAMILIES.name}, or leave out --with."
        )
    return wanted


def _all_inputs(
    sessions: Sequence[Session], specs: Sequence[SweepSpec], options: Options
) -> Inputs:
    """Return the inputs of the first spec, with those of the others, which fit it."""
    ours, *others = (inputs_of(s, spec, options) for s, spec in zip(sessions, specs, strict=True))
    for other in others:
        refuse_unlike(ours, other)
    return replace(ours, others=tuple(others))


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


def _measured(sessions: Sequence[Session], measure: Measure[Any], inputs: Inputs) -> Any:
    """Return the stored numbers of a measure, or compute and store them."""
    first = sessions[0]
    known = _stored(first, measure, inputs)
    if known is not None:
        return known
    parts = _parts(sessions, measure.needs(inputs))
    models = sum(
        len({m for c in some for m in c.members}) for _, p in parts for some, _ in p.models
    )
    total = models + sum(len(part.requests) for _, part in parts)
    with watched(first.evaluator, f"measuring {measure.name}", total, first.show) as progress:
        for session, part in parts:
            session.evaluator.on_result = progress.advance
            _answer(session.evaluator, part, progress)
            session.evaluator.on_result = lambda count: None
        progress.finish()
    return create_record(first.store, _path(measure, inputs), measure.compute(inputs))


def _parts(sessions: Sequence[Session], needed: Needed) -> list[tuple[Session, Needed]]:
    """Return what each session has to answer: the first one for the sweep itself."""
    return [*zip(sessions, (needed, *needed.others), strict=False)]


def _answer(evaluator: StoredEvaluator, needed: Needed, progress: Progress) -> None:
    """Let workers answer all that a measure needs of the models of one spec."""
    for models, split in needed.models:
        evaluator.fill(models, [split])  # at once, because Ray distributes models
    asked: dict[Split, list[Any]] = {}
    for request, split, _ in needed.requests:
        asked.setdefault(split, []).append(request)
    for split, requests in asked.items():
        for at in range(0, len(requests), AT_A_TIME):
            part = requests[at : at + AT_A_TIME]
            evaluator.measure(part, split)
            progress.advance(len(part))


def _planned(sessions: Sequence[Session], measure: Measure[Any], inputs: Inputs) -> Planned:
    why = measure.left_out(inputs)
    stored = why is None and _stored(sessions[0], measure, inputs) is not None
    costs = []
    if why is None and not stored:
        costs = [_cost(*part) for part in _parts(sessions, measure.needs(inputs))]
    return Planned(
        name=measure.name,
        summary=measure.summary,
        paper=measure.paper,
        stored=stored,
        passes=sum(passes for passes, _ in costs),
        samples=sum(samples for _, samples in costs),
        left_out=why,
    )


def _cost(session: Session, needed: Needed) -> tuple[int, int]:
    """Return the passes that are not stored, and the samples in them, as in `Planned`."""
    evaluator = session.evaluator
    unknown = [(evaluator.unknown(models, on), on.size) for models, on in needed.models]
    counts = [(len(models), size) for models, size in unknown]
    asked = [(n, on.size) for one, on, n in needed.requests if not evaluator.knows(one, on)]
    passes = sum(n for n, _ in counts) + sum(math.ceil(n / size) for n, size in asked)
    samples = sum(n * size for n, size in counts) + sum(n for n, _ in asked)
    estimated = _estimated(session, {m for models, _ in unknown for m in models})
    return passes + bool(needed.unlisted), samples + needed.unlisted + estimated


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
