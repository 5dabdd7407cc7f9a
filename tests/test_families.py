"""Models of two specs on the same samples: numbers by hand, matched by name and not by position."""

import dataclasses

import numpy as np
import pytest
from shared import Given, board, demo, ingredient, scores, sha

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.records import Basis, CheckpointRef, Predictions, Split
from soupray.core.trials import Pool
from soupray.diagnostics.across import measure_families
from soupray.diagnostics.families import FAMILIES
from soupray.diagnostics.matching import matched, refuse_unlike
from soupray.diagnostics.measure import Inputs

LABELS = np.array([0, 1, 0, 1])
HELD = np.array([0, 1, 2])
ORDER = [2, 0, 3, 1]
"""Where the other spec has our test samples: its row k is our row ORDER[k]."""

REF = CheckpointRef(sha256=sha("anchor"), size_bytes=1)


class Ids:
    """The ids of samples, by the name of the split."""

    def __init__(self, **known: list[str]) -> None:
        self.known = known

    def ids(self, split: Split) -> list[str]:
        return self.known[split.name]


class WithFeatures(Given):
    """Answers with features; those of a model are the square of its logits."""

    def features(self, model, rows, split):
        return self.predictions(model, split).logits[rows] ** 2


def saying(split: Split, answers, labels, weight: float) -> Predictions:
    """Logits [N, 10] that are `weight` for one answer and 0 for the others."""
    logits = np.zeros((len(labels), 10), np.float32)
    logits[np.arange(len(labels)), answers] = weight
    return Predictions(split=split, logits=logits, labels=np.array(labels))


def inputs(name: str, right: dict, turned: bool = False) -> Inputs:
    """A spec whose trials are right on these test samples, each with a weight, and on held-out.

    Args:
        name: of the spec.
        right: (right samples, weight of each answer) by the name of the trial.
        turned: its samples are in another order, and its classes are named from nine to zero.
    """
    names = list(demo().task.classes)
    spec = demo().model_copy(
        update={"name": name, "task": demo().task.model_copy(
            update={"classes": names[::-1] if turned else names})}
    )  # fmt: skip
    order = ORDER if turned else list(range(4))
    column = (lambda c: 9 - c) if turned else (lambda c: c)
    tag = "turned" if turned else ""
    test = Split(name="test", role="test", digest=sha(f"test{tag}"), size=4, classes=10)
    held = Split(name="held_out", role="held_out", digest=sha(f"held{tag}"), size=3, classes=10)
    known = {}
    for trial, (samples, weight) in right.items():
        model = mean_of([sha(trial)])
        answers = np.array([LABELS[k] if k in samples else 1 - LABELS[k] for k in order])
        known[model, "test"] = saying(test, column(answers), column(LABELS[order]), weight)
        known[model, "held_out"] = saying(held, column(HELD), column(HELD), weight)
    first = mean_of([sha(next(iter(right)))])
    return Inputs(
        spec=spec,
        pool=Pool(init=REF, anchor=REF, ingredients=tuple(
            ingredient(trial, scores(3, 3)) for trial in right
        )),
        basis=Basis(key="b", splits=(held, test), init=REF, anchor=REF),
        board=board("best_single", best_single=first),
        answers=WithFeatures(known),
        samples=Ids(test=[f"t{k}" for k in order], held_out=["h0", "h1", "h2"]),
    )  # fmt: skip


OURS = {"a1": ({0, 1, 2}, 2.0), "a2": ({0, 1, 3}, 3.0)}
THEIRS = {"b1": ({2, 3}, 1.0)}


def beside(ours: Inputs, *others: Inputs) -> Inputs:
    return dataclasses.replace(ours, others=others)


def test_pairs_within_and_across_by_hand():
    """Every model is right on held-out data, so that its temperature is 1.

    a1 and a2 differ on samples 2 and 3, and the surer one (a2) decides: right on 0, 1, 3. Each of
    them differs from b1 on three samples, and decides: .75 - (.75 + .5) / 2.
    """
    made = measure_families(beside(inputs("ours", OURS), inputs("theirs", THEIRS, turned=True)))
    own, across = made.groups
    assert (own.specs, own.pairs) == (("ours", "ours"), 1)
    assert (across.specs, across.pairs) == (("ours", "theirs"), 2)
    assert [g.inconsistency[0] for g in made.groups] == [0.5, 0.75]
    assert [g.gain[0] for g in made.groups] == [0, 0.125]
    assert [g.over_better[0] for g in made.groups] == [0, 0]
    assert [g.conversion for g in made.groups] == [1 / 2, 4 / 6]
    # By sample: across (1, 1, .5, .5), within (0, 0, 1, 1): the difference has deviation .75.
    (contrast,) = made.contrasts
    assert contrast.inconsistency == pytest.approx((0.25, 0.25 - 0.735, 0.25 + 0.735), abs=1e-3)
    assert contrast.gain[0] == 0.125
    assert [(f.models, f.shared) for f in made.families] == [(2, 0), (1, 0)]
    assert [f.best for f in made.families] == [0.75, 0.5]


def test_names_decide_and_not_positions():
    """The same models with samples in another order and classes the other way round."""
    plain = measure_families(beside(inputs("ours", OURS), inputs("theirs", THEIRS)))
    turned = measure_families(beside(inputs("ours", OURS), inputs("theirs", THEIRS, turned=True)))
    assert turned == plain
    # A copy of our models differs in nothing: by position it would be wrong nearly everywhere.
    copy = {f"c{k}": value for k, value in enumerate(OURS.values())}
    twins = measure_families(beside(inputs("ours", OURS), inputs("copy", copy, turned=True)))
    by_name = {p.models: p.inconsistency for p in twins.points if p.specs == ("ours", "copy")}
    assert by_name["best_single", "best_single"] == 0
    assert by_name["trial a2", "trial c1"] == 0
    assert by_name["best_single", "trial c1"] == 0.5
    assert twins.groups[0].inconsistency == twins.groups[1].inconsistency
    assert twins.groups[2].inconsistency[0] == 0.25  # of four pairs, two differ on half
    # The features are compared in our order too: those of a copy are the same.
    only = {"c0": OURS["a1"]}
    alone = measure_families(beside(inputs("ours", {"a1": OURS["a1"]}),
                                    inputs("copy", only, turned=True)))  # fmt: skip
    assert alone.groups[0].cka_complement == pytest.approx(0)


def test_a_checkpoint_that_two_specs_have_counts_once():
    made = measure_families(beside(inputs("ours", OURS), inputs("theirs", OURS | THEIRS)))
    assert [(f.models, f.shared) for f in made.families] == [(2, 0), (1, 2)]
    assert any("2 trials of theirs are left out" in s for s in FAMILIES.section(made).sentences)


def test_the_answer_comes_first():
    made = measure_families(beside(inputs("ours", OURS), inputs("theirs", THEIRS, turned=True)))
    section = FAMILIES.section(made)
    assert section.sentences[0].startswith(
        "ours and theirs: models of different specs err neither more nor less, beyond chance, "
        "differently than models of one spec (+25.0 [-48.5, +98.5] points"
    )
    assert section.tables[0].rows[1][0] == "ours x theirs"
    assert FAMILIES.left_out(inputs("ours", OURS)) == (
        "it compares the models of several specs: name others by --with"
    )


def test_other_samples_are_refused_by_name():
    ours, theirs = inputs("ours", OURS), inputs("theirs", THEIRS, turned=True)
    fewer = dataclasses.replace(
        theirs, samples=Ids(test=["t2", "t0", "t3", "x"], held_out=["h0", "h1", "h2"])
    )
    with pytest.raises(EvaluationError, match=r"other samples of ID test than ours: 4 and 4; only "
                       r"in ours: 1 \(t1\); only in theirs: 1 \(x\)"):  # fmt: skip
        refuse_unlike(ours, fewer)
    twice = dataclasses.replace(theirs, samples=Ids(test=["t0"] * 4, held_out=["h0", "h1", "h2"]))
    with pytest.raises(EvaluationError, match="1 ids of the samples of ID test of theirs are there "
                       "twice, the first t0"):  # fmt: skip
        refuse_unlike(ours, twice)
    moved = dataclasses.replace(
        theirs, samples=Ids(test=theirs.samples.ids(theirs.test), held_out=["h1", "h0", "h2"])
    )
    with pytest.raises(EvaluationError, match="name 2 of 3 held-out samples differently"):
        refuse_unlike(ours, moved)
    refuse_unlike(ours, theirs)


def test_other_classes_are_refused_with_both_lists():
    theirs = inputs("theirs", THEIRS)
    task = theirs.spec.task.model_copy(update={"classes": ["cat", *theirs.spec.task.classes[1:]]})
    other = dataclasses.replace(theirs, spec=theirs.spec.model_copy(update={"task": task}))
    with pytest.raises(ConfigError, match="the classes of theirs, which is compared with ours"):
        matched(inputs("ours", OURS), other, "test")
