"""Which mistakes remain, and which the entry to take has mended or made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from soupray.core.arrays import Indices, Labels, Mask
from soupray.core.candidates import Candidate
from soupray.core.records import Predictions, Record
from soupray.diagnostics.annotations import SHOWN, Annotations, Said, rows_of
from soupray.diagnostics.measure import CannotMeasure, Inputs, Measure, Needed, Picture, Shown
from soupray.diagnostics.severity import Severity, severities, severity_table
from soupray.maths.annotations import (
    COLLAPSED,
    KINDS,
    RIGHT,
    SKIPPED,
    WRONG,
    Accuracy,
    Judged,
    judge,
    multi_label_accuracy,
)
from soupray.maths.metrics import mapped
from soupray.reporting.notes import percent
from soupray.reporting.sections import Card, Gallery, Table
from soupray.spec.class_names import is_imagenet
from soupray.spec.class_numbers import number_of, numbers_by_name

MOST_CASES = 24
"""Samples that a gallery shows."""


class Case(Record, frozen=True, kw_only=True):
    """A sample that exactly one of two models gets right.

    Attributes:
        id: of the sample.
        label: its class.
        before: what the other model says, with its confidence.
        after: what the entry to take says.
        kinds: what the two answers are, one of `annotations.KINDS`.
        trials: share of the trials that get it right: the lower, the harder.
        picture: the sample.
    """

    id: str
    label: str
    before: tuple[str, float]
    after: tuple[str, float]
    kinds: tuple[str, str]
    trials: float
    picture: Picture


class OfEntry(Record, frozen=True, kw_only=True):
    """The answers of an entry on ID test.

    Attributes:
        name: of the entry.
        right: number of samples that it gets right.
        kinds: number of answers of each kind, by `annotations.KINDS`.
        multi_label: multi-label accuracy; None without annotations.
        slices: by the name of a slice, number of wrong answers in it.
    """

    name: str
    right: int
    kinds: dict[str, int]
    multi_label: float | None
    slices: dict[str, int]


class Mistakes(Record, frozen=True, kw_only=True):
    """Mistakes on ID test.

    Attributes:
        models: names of the entry to take and of the model that it is compared with.
        n: number of samples.
        both: samples that both get wrong.
        fixed: number of samples that only the entry to take gets right.
        broken: number of samples that only the other model gets right.
        fixed_cases: some of the fixed ones, the hardest first.
        broken_cases: some of the broken ones, the hardest first.
        entries: in the order of the leaderboard.
        source: name of the file of annotations; None without one.
        judged: number of samples that people judged.
        counted: number of those that are not problematic.
        classes: number of classes with such a sample.
        of_classes: number of classes.
        unmatched: names in the file that are no sample of ID test, and how many there are.
        collapsed: classes of ImageNet that are not told apart were joined.
        slices: number of samples in each slice.
        overlaps: pairs of slices that share samples, and how many.
        severities: mistakes of the two models by severity, where a file assesses mistakes.
    """

    models: tuple[str, str]
    n: int
    both: int
    fixed: int
    broken: int
    fixed_cases: tuple[Case, ...]
    broken_cases: tuple[Case, ...]
    entries: tuple[OfEntry, ...]
    source: str | None
    judged: int
    counted: int
    classes: int
    of_classes: int
    unmatched: tuple[tuple[str, ...], int]
    collapsed: bool
    slices: dict[str, int]
    overlaps: tuple[tuple[str, str, int], ...]
    severities: tuple[Severity, ...]


def compared(inputs: Inputs) -> tuple[tuple[str, Candidate], tuple[str, Candidate]]:
    """Return the entry to take, and the best single model.

    If the entry answers like that model, the first entry that answers otherwise stands for it.

    Raises:
        CannotMeasure: all entries answer alike.
    """
    board, test = inputs.frozen, inputs.test
    single = board.models["best_single"]
    own = _top(inputs.answers.predictions(single, test))[0]
    for name, model in {board.champion: board.models[board.champion], **board.models}.items():
        if (_top(inputs.answers.predictions(model, test))[0] != own).any():
            return (name, model), ("best_single", single)
    raise CannotMeasure("all entries give the same answers: there is nothing to compare")


class _Truth(NamedTuple):
    """What is known of the samples of ID test.

    Attributes:
        ids: in order.
        labels: class of each sample, [N].
        judged: what people say of each sample; None: only its label is known.
        collapsed: see `annotations.COLLAPSED`.
        slices: rows of each named slice.
    """

    ids: list[str]
    labels: Labels
    judged: list[Judged | None]
    collapsed: Mapping[int, frozenset[int]]
    slices: Mapping[str, Indices]

    @property
    def known(self) -> Mask:
        """Samples that people have judged, [N]."""
        return np.array([one is not None for one in self.judged], dtype=bool)

    def kinds(self, answers: Indices) -> list[str]:
        """What each answer is."""
        return judge(answers, self.labels, self.judged, self.collapsed)


def measure_mistakes(inputs: Inputs) -> Mistakes:
    """Return the mistakes of the entries of the newest leaderboard on ID test."""
    ids, names = inputs.samples.ids(inputs.test), list(inputs.spec.task.classes)
    said = inputs.options.annotations
    known, unmatched = _judged(said, ids, names)
    (first, after), (second, before) = compared(inputs)
    two = [inputs.answers.predictions(model, inputs.test) for model in (before, after)]
    truth = _Truth(
        ids=ids,
        labels=np.asarray(two[0].labels),
        judged=[known.get(row) for row in range(len(ids))],
        collapsed=COLLAPSED if known and is_imagenet(names) else {},
        slices=_slices(inputs, ids),
    )
    entries = {name: _entry(name, m, inputs, truth) for name, m in inputs.frozen.each().items()}
    accuracy = next(iter(entries.values()))[1]
    cases = _Cases(inputs, truth, two)
    old, new = cases.right
    return Mistakes(
        models=(first, second),
        n=len(ids),
        both=int((~old & ~new).sum()),
        fixed=int((~old & new).sum()),
        broken=int((old & ~new).sum()),
        fixed_cases=cases.of(~old & new),
        broken_cases=cases.of(old & ~new),
        entries=tuple(entry for entry, _ in entries.values()),
        source=said.source if said is not None and said.samples else None,
        judged=len(known),
        counted=accuracy.n,
        classes=accuracy.classes,
        of_classes=len(names),
        unmatched=(tuple(unmatched[:SHOWN]), len(unmatched)),
        collapsed=bool(truth.collapsed),
        slices={name: len(rows) for name, rows in truth.slices.items()},
        overlaps=tuple(_overlaps(truth.slices)),
        severities=cases.severities(said) if said is not None and said.mistakes else (),
    )


def _entry(name: str, model: Candidate, inputs: Inputs, truth: _Truth) -> tuple[OfEntry, Accuracy]:
    chosen = _top(inputs.answers.predictions(model, inputs.test))[0]
    kinds = truth.kinds(chosen)
    accuracy = multi_label_accuracy(kinds, truth.labels, truth.known)
    # In a slice, a plain count: a problematic sample has its label.
    wrong = np.array([kind == WRONG for kind in kinds])
    wrong |= np.array([kind == SKIPPED for kind in kinds]) & (chosen != truth.labels)
    made = OfEntry(
        name=name,
        right=int((chosen == truth.labels).sum()),
        kinds={kind: kinds.count(kind) for kind in KINDS},
        multi_label=accuracy.value,
        slices={part: int(wrong[rows].sum()) for part, rows in truth.slices.items()},
    )
    return made, accuracy


def _top(of: Predictions) -> tuple[Indices, Any]:
    """Return the answer to each sample and its probability."""
    logits = mapped(of.logits, of.split.label_map).astype(np.float64)
    p = softmax(logits, axis=1)
    return logits.argmax(axis=1), p.max(axis=1)


class _Cases:
    """Samples that exactly one of two models gets right."""

    def __init__(self, inputs: Inputs, truth: _Truth, two: Sequence[Predictions]) -> None:
        """Find what both models say.

        Args:
            inputs: with the pictures, and the trials, which say how hard a sample is.
            truth: of the samples.
            two: the other model, and the entry to take.
        """
        self._inputs, self._truth = inputs, truth
        self._top = [_top(one) for one in two]
        self._kinds = [truth.kinds(answer) for answer, _ in self._top]
        self.right: list[Mask] = [answer == truth.labels for answer, _ in self._top]
        self._trials = np.mean(inputs.right([*inputs.trials.values()], inputs.test), axis=0)

    def severities(self, said: Annotations) -> tuple[Severity, ...]:
        """Return how bad the mistakes of the two are, as people assess them."""
        wrong = [np.array([kind == WRONG for kind in kinds]) for kinds in self._kinds]
        two = [(answer, mask) for (answer, _), mask in zip(self._top, wrong, strict=True)]
        return severities(said, self._truth.ids, self._inputs.spec.task.classes, two)

    def of(self, which: Mask) -> tuple[Case, ...]:
        """Return the hardest cases: those that fewest trials get right first."""
        rows = np.flatnonzero(which)
        rows = rows[np.argsort(self._trials[rows], kind="stable")][:MOST_CASES]
        pictures = self._inputs.samples.pictures(self._inputs.test, rows.tolist())
        names = self._inputs.spec.task.classes

        def said(model: int, row: int) -> tuple[str, float]:
            answer, p = self._top[model]
            return names[int(answer[row])], float(p[row])

        return tuple(
            Case(
                id=self._truth.ids[row],
                label=names[int(self._truth.labels[row])],
                before=said(0, row),
                after=said(1, row),
                kinds=(self._kinds[0][row], self._kinds[1][row]),
                trials=float(self._trials[row]),
                picture=picture,
            )
            for row, picture in zip(rows.tolist(), pictures, strict=True)
        )


def _judged(
    said: Annotations | None, ids: Sequence[str], names: Sequence[str]
) -> tuple[dict[int, Judged], list[str]]:
    """Return what people say of each row, and the names in the file that are no id."""
    if said is None or not said.samples:
        return {}, []
    rows, missing = rows_of(said.samples, ids)
    if not rows:
        raise CannotMeasure(
            f"none of the {len(said.samples)} names in {said.source} is a sample of ID test; the "
            f"first are {', '.join(missing[:SHOWN])}, ids here are {', '.join(ids[:SHOWN])}"
        )
    if len(set(rows.values())) < len(rows):
        first: dict[int, str] = {}
        one = next(name for name, row in rows.items() if first.setdefault(row, name) != name)
        raise CannotMeasure(
            f"{said.source} has {first[rows[one]]!r} and {one!r}, which are the same sample of ID "
            "test; leave one of them"
        )
    known = numbers_by_name(names)
    found = {row: _numbers(said.samples[name], known) for name, row in rows.items()}
    strange = sorted({c for _, unknown in found.values() for c in unknown})
    if strange:
        raise CannotMeasure(
            f"{said.source} names {len(strange)} classes that the task has not, the first are "
            f"{', '.join(strange[:SHOWN])}; task.classes are {', '.join(list(names)[:SHOWN])}, ..."
        )
    return {row: judged for row, (judged, _) in found.items()}, missing


def _numbers(said: Said, known: Mapping[str, int]) -> tuple[Judged, list[str]]:
    numbers = {name: number_of(name, known) for name in (*said.right, *said.unclear)}
    unknown = [name for name, number in numbers.items() if number is None]
    right, unclear = (
        frozenset(n for name in part if (n := numbers[name]) is not None)
        for part in (said.right, said.unclear)
    )
    return Judged(right, unclear, said.problematic), unknown


def _slices(inputs: Inputs, ids: Sequence[str]) -> dict[str, Indices]:
    """Return the rows of each named slice. A slice that names no sample is refused."""
    said = inputs.options.annotations
    named = {**(said.slices if said else {}), **inputs.slices}
    found: dict[str, Indices] = {}
    for name, members in named.items():
        rows, missing = rows_of(members, ids)
        if missing and name in inputs.slices:
            raise CannotMeasure(
                f"slice {name}: {len(missing)} of {len(members)} names are no sample of ID test, "
                f"the first are {', '.join(missing[:SHOWN])}; ids here are "
                f"{', '.join(ids[:SHOWN])}"
            )
        if rows:
            found[name] = np.array(sorted(set(rows.values())))
    return found


def _overlaps(slices: Mapping[str, Indices]) -> Iterator[tuple[str, str, int]]:
    names = list(slices)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if common := len(np.intersect1d(slices[one], slices[other])):
                yield one, other, common


# ---- How it is read


def _show(made: Mistakes) -> Shown:
    return Shown(
        sentences=tuple(_sentences(made)), tables=_tables(made), galleries=tuple(_galleries(made))
    )


def _sentences(made: Mistakes) -> Iterator[str]:
    first, second = made.models
    yield (
        f"Of {made.n} samples of ID test, {first} gets {made.fixed} right that {second} gets "
        f"wrong, and {made.broken} wrong that {second} gets right; both are wrong on {made.both}."
    )
    if made.source is not None:
        yield (
            f"{made.source} judges {made.judged} of the {made.n} samples; {made.counted} of these "
            f"are not problematic, in {made.classes} of {made.of_classes} classes. Multi-label "
            "accuracy is the mean over these classes."
        )
    if made.classes < made.of_classes and made.source is not None:
        yield (
            f"{made.of_classes - made.classes} classes have no judged sample: the number is not "
            "that of the paper, which needs all of them."
        )
    if made.unmatched[1]:
        yield (
            f"{made.unmatched[1]} names in {made.source} are no sample of ID test, the first: "
            f"{', '.join(made.unmatched[0])}."
        )
    if made.collapsed:
        yield (
            "Where a class of ImageNet is right, the classes that the paper joins with it are "
            "right, too: a coffee mug is a cup."
        )
    for one, other, common in made.overlaps:
        yield f"The slices {one} and {other} share {common} samples, which count in both."


def _tables(made: Mistakes) -> tuple[Table, ...]:
    kinds = KINDS if made.source is not None else ()
    columns = ("wrong", *(("multi-label",) if made.source else ()), *kinds, *made.slices)
    rows = [
        (
            e.name,
            str(made.n - e.right),
            *((percent(e.multi_label) if e.multi_label is not None else "-",) if kinds else ()),
            *(str(e.kinds[kind]) for kind in kinds),
            *(f"{e.slices[name]} of {size}" for name, size in made.slices.items()),
        )
        for e in made.entries
    ]
    meaning = f"wrong: answers that are not the label, of {made.n}."
    if kinds:
        meaning += (
            " multi-label: accuracy in %, where another right or an unclear class is right, too; "
            f"mean over classes. Then the number of answers of each kind: {RIGHT}: the label; "
            "skipped: problematic samples. Samples that nobody judged have their label alone."
        )
    if made.slices:
        meaning += f" {', '.join(made.slices)}: wrong answers in the slice."
    shown = Table(
        columns=("entry", *columns), numbers=columns, rows=tuple(rows), least=kinds, meaning=meaning
    )
    tables = [shown]
    if made.severities:
        tables.append(severity_table(made.severities, made.models))
    for what, cases in (("fixed", made.fixed_cases), ("broken", made.broken_cases)):
        if cases:
            tables.append(_cases_table(made, what, cases))
    return tuple(tables)


def _cases_table(made: Mistakes, what: str, cases: Sequence[Case]) -> Table:
    first, second = made.models
    columns = (what, "class", "before", "after", "trials")
    return Table(
        columns=columns,
        numbers=("trials",),
        rows=tuple(
            (c.id, c.label, _said(c.before), _said(c.after), percent(c.trials)) for c in cases
        ),
        least=("trials",),
        meaning=(
            f"before: what {second} says, after: what {first} says, each with its confidence. "
            "trials: share of the trials that are right, in %; the hardest first."
        ),
    )


def _said(answer: tuple[str, float]) -> str:
    return f"{answer[0]} {percent(answer[1])} %"


def _galleries(made: Mistakes) -> Iterator[Gallery]:
    first, second = made.models
    titles = (
        (f"Right in {first}, wrong in {second}", made.fixed, made.fixed_cases),
        (f"Wrong in {first}, right in {second}", made.broken, made.broken_cases),
    )
    for title, count, cases in titles:
        if cases:
            more = f": {count}" if count == len(cases) else f": {len(cases)} of {count}"
            yield Gallery(
                title=f"{title}{more}, the hardest first",
                cards=tuple(_card(case, made) for case in cases),
            )


def _card(case: Case, made: Mistakes) -> Card:
    first, second = made.models
    return Card(
        image=case.picture.image,
        text=case.picture.text,
        lines=(
            f"{case.label}",
            f"{second}: {_said(case.before)}{_kind(case.kinds[0])}",
            f"{first}: {_said(case.after)}{_kind(case.kinds[1])}",
            f"right in {percent(case.trials)} % of the trials · {case.id}",
        ),
    )


def _kind(kind: str) -> str:
    return "" if kind in ("right", "wrong") else f" ({kind})"


def _needs(inputs: Inputs) -> Needed:
    models = (*inputs.frozen.each().values(), *inputs.trials.values())
    return Needed(models=((models, inputs.test),))


def _depends(inputs: Inputs) -> object:
    return [inputs.options.annotations, dict(inputs.slices), inputs.test.digest]


MISTAKES = Measure(
    name="mistakes",
    title="Mistakes that remain",
    summary="what the entry to take fixed and broke, sample by sample; multi-label accuracy",
    paper="Vasudevan et al. 2022, arXiv:2205.04596",
    about=(
        "An answer that differs from the label is not always a mistake. Where a file says which "
        "answers are right, the others are counted; without one, the label decides. The samples "
        "on which the entry to take and the best single model differ are shown, the hardest first."
    ),
    record=Mistakes,
    compute=measure_mistakes,
    show=_show,
    needs=_needs,
    depends=_depends,
    version=2,
)
