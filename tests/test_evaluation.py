"""Evaluation: what a recipe can reach, what is remembered, and what a model scores."""

import inspect

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import Small, ingredient, scores, small, split
from soupray.evaluation.remembered import Remembered

from soupray.candidates import WeightSoup, mean_of, weight_soup
from soupray.errors import EvaluationError
from soupray.evaluation.local import LocalEvaluator, predict, reaches
from soupray.evaluation.selection import HeldOut
from soupray.ports import Reached
from soupray.records import CheckpointRef, Pool, Rejected, Scores, Setting, Split
from soupray.storage import open_store

N = 100
HELD_OUT = split("held_out", N, role="held_out")
TEST = split("test", N, role="test")
ANCHOR = CheckpointRef(sha256="anchor", size_bytes=1)
POOL = Pool(init=ANCHOR, anchor=ANCHOR, ingredients=(ingredient("a", scores(7)),))


class Counting:
    """An evaluator whose scores are a table; `early` rejects before it has seen everything."""

    def __init__(self, table: dict[WeightSoup, int], early: bool = False):
        self._table, self._early = table, early
        self.asked: list[tuple[WeightSoup, str]] = []

    def scores(self, candidates, split):
        self.asked += [(c, split.name) for c in candidates]
        return [scores(self._table[c], N, split.digest) for c in candidates]

    def first_reaching(self, candidates, split, bound, accept):
        results: list[Scores | Rejected] = []
        for candidate in candidates:
            (found,) = self.scores([candidate], split)
            hit = reaches(found, bound, accept)
            rejected = self._early and not hit
            results.append(Rejected(seen=1, correct=0, bound=bound) if rejected else found)
            if hit:
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def predictions(self, candidate, split):
        raise NotImplementedError

    def save(self, candidate):
        raise NotImplementedError


def soups(count: int) -> list[WeightSoup]:
    return [mean_of([f"m{i}"]) for i in range(count)]


@pytest.mark.parametrize("role", ["train", "test", "shift"])
def test_a_selection_is_made_of_held_out_data_and_of_nothing_else(role):
    with pytest.raises(EvaluationError, match=f"held-out data only; 'x' has role '{role}'"):
        HeldOut(Counting({}), POOL, split("x", N, role=role))


def test_a_selection_needs_an_ingredient():
    with pytest.raises(EvaluationError, match="the pool is empty"):
        HeldOut(Counting({}), msgspec.structs.replace(POOL, ingredients=()), HELD_OUT)


def test_a_selection_asks_the_evaluator_about_held_out_data():
    a, b = soups(2)
    evaluator = Counting({a: 3, b: 5})
    selection = HeldOut(evaluator, POOL, HELD_OUT)
    assert [s.correct for s in selection.scores([b, a])] == [5, 3]
    reached = selection.first_reaching([a, b], 4, "ge")
    assert reached.hit
    assert [s.correct for s in reached.results] == [3, 5]
    assert {name for _, name in evaluator.asked} == {"held_out"}


def public(thing: object) -> dict[str, object]:
    return {n: getattr(thing, n) for n in dir(thing) if not n.startswith("_")}


def reachable(thing: object, seen: dict[int, object]) -> list[object]:
    """All that public attributes and the elements of containers lead to."""
    if id(thing) in seen or isinstance(thing, str | int | float | None):
        return list(seen.values())
    seen[id(thing)] = thing
    parts = list(public(thing).values()) if not isinstance(thing, tuple | list | dict) else []
    if isinstance(thing, dict):
        parts += list(thing.values())
    elif isinstance(thing, tuple | list):
        parts += list(thing)
    for part in parts:
        if not inspect.isbuiltin(part) and not isinstance(part, type):
            reachable(part, seen)
    return list(seen.values())


def test_no_public_attribute_of_a_selection_leads_to_an_evaluator_or_a_split():
    selection = HeldOut(Counting({}), POOL, HELD_OUT)
    assert sorted(public(selection)) == ["first_reaching", "pool", "scores"]
    found = reachable(selection, {})
    assert POOL in found  # it does look
    assert not [x for x in found if isinstance(x, Counting | Split)]
    assert not [x for x in found if "split" in public(x) and not isinstance(x, Scores)]


def test_no_method_of_a_selection_takes_a_split_and_nothing_can_be_replaced():
    selection = HeldOut(Counting({}), POOL, HELD_OUT)
    for name, method in public(selection).items():
        if callable(method):
            assert "split" not in inspect.signature(method).parameters
            with pytest.raises(TypeError):
                method([], split=TEST)
        with pytest.raises(AttributeError):
            setattr(selection, name, None)
    with pytest.raises(AttributeError):
        selection.anything = None  # type: ignore[attr-defined]


def remembering(evaluator: Counting, store=None) -> Remembered:
    return Remembered(evaluator, store or open_store("memory://"), Setting())


def test_what_was_scored_once_is_not_asked_again_by_anybody():
    a, b, c = soups(3)
    store = open_store("memory://")
    first, second = Counting({a: 1, b: 2, c: 3}), Counting({c: 3})
    scored = remembering(first, store).scores([a, b, a], HELD_OUT)
    assert [s.correct for s in scored] == [1, 2, 1]
    assert first.asked == [(a, "held_out"), (b, "held_out")]
    again = remembering(second, store)
    assert again.scores([a, b, a], HELD_OUT) == scored
    assert second.asked == []
    assert [s.correct for s in again.scores([b, c], HELD_OUT)] == [2, 3]
    assert second.asked == [(c, "held_out")]


def test_another_split_or_setting_is_another_score():
    (a,) = soups(1)
    store, evaluator = open_store("memory://"), Counting({a: 1})
    for setting in (Setting(), Setting(batch_size=10), Setting(threads=2)):
        for on in (HELD_OUT, TEST):
            (found,) = Remembered(evaluator, store, setting).scores([a], on)
            assert found.split == on.digest
    assert len(evaluator.asked) == 6


def test_every_result_is_counted_once_wherever_it_came_from():
    candidates = soups(4)
    store, evaluator = open_store("memory://"), Counting(dict.fromkeys(candidates, 1))
    remembering(evaluator, store).scores(candidates[:3], HELD_OUT)
    counted: list[None] = []
    remembered = Remembered(evaluator, store, Setting(), lambda: counted.append(None))
    remembered.scores(candidates, HELD_OUT)
    assert len(counted) == 3  # the fourth is counted by the evaluator that is asked


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), max_size=8),
    known=st.sets(st.integers(0, 7)),
    bound=st.integers(0, 10),
    accept=st.sampled_from(["ge", "gt"]),
    early=st.booleans(),
)
def test_first_reaching_decides_as_a_plain_loop(counts, known, bound, accept, early):
    candidates = soups(len(counts))
    table = dict(zip(candidates, counts, strict=True))
    store = open_store("memory://")
    earlier = [c for i, c in enumerate(candidates) if i in known]
    remembering(Counting(table), store).scores(earlier, HELD_OUT)

    evaluator = Counting(table, early)
    reached = remembering(evaluator, store).first_reaching(candidates, HELD_OUT, bound, accept)

    hits = [i for i, c in enumerate(counts) if c > bound or (c == bound and accept == "ge")]
    assert reached.hit == bool(hits)
    expected = counts[: hits[0] + 1] if hits else counts
    assert len(reached.results) == len(expected)
    for result, count in zip(reached.results, expected, strict=True):
        assert isinstance(result, Rejected) or result.correct == count
        assert early or isinstance(result, Scores)
    if hits:
        assert isinstance(reached.results[-1], Scores)

    asked_before = len(evaluator.asked)
    again = remembering(evaluator, store).first_reaching(candidates, HELD_OUT, bound, accept)
    if not early:
        assert again == reached
        assert len(evaluator.asked) == asked_before


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Small:
    return small(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def evaluator(here) -> LocalEvaluator:
    return LocalEvaluator(here.task, here.data, here.checkpoints, here.spec.setting)


def stored(here: Small, **changes: torch.Tensor | None) -> str:
    """The digest of theta_0 with some tensors replaced or left out."""
    weights = here.checkpoints.load(here.basis.init.sha256)
    changed = {n.replace("__", "."): t for n, t in changes.items()}
    kept = {n: t for n, t in {**weights, **changed}.items() if t is not None}
    return here.checkpoints.save(kept, {"test": "evaluation"}).sha256


def test_a_padded_batch_gives_the_logits_of_a_full_one(here):
    model = here.task.model()
    model.load_state_dict(here.checkpoints.load(here.basis.init.sha256))
    images = np.array(here.data.samples(here.data.split("test"))[0][:20])
    setting = Setting(batch_size=10)
    full = predict(model, here.task, images, setting)
    assert (full.shape, full.dtype) == ((20, 10), np.float32)
    for n in (1, 7, 10, 13):
        assert (predict(model, here.task, images[:n], setting) == full[:n]).all()


def test_scores_are_of_the_candidate_and_the_order_of_asking_does_not_matter(here, evaluator):
    zero_shot = mean_of([here.basis.init.sha256])
    head = here.checkpoints.load(here.basis.init.sha256)["head.weight"]
    turned = mean_of([stored(here, head__weight=head.roll(1, dims=0))])
    split = here.data.split("held_out")
    first, wrong, again = evaluator.scores([zero_shot, turned, zero_shot], split)
    assert first == again
    assert first.correct > 300 > wrong.correct
    rolled = np.roll(evaluator.predictions(zero_shot, split).logits, 1, axis=1)
    assert np.allclose(evaluator.predictions(turned, split).logits, rolled, atol=1e-4)


def test_the_first_that_reaches_is_the_last_that_is_evaluated(here, evaluator):
    zero_shot = mean_of([here.basis.init.sha256])
    split = here.data.split("held_out")
    (alone,) = evaluator.scores([zero_shot], split)
    reached = evaluator.first_reaching([zero_shot, zero_shot], split, alone.correct, "ge")
    assert reached == Reached(results=(alone,), hit=True)
    reached = evaluator.first_reaching([zero_shot, zero_shot], split, alone.correct, "gt")
    assert reached == Reached(results=(alone, alone), hit=False)


def test_a_weight_that_is_nan_is_an_error_that_names_the_ingredients(here, evaluator):
    head = here.checkpoints.load(here.basis.init.sha256)["head.weight"].clone()
    head[0, 0] = float("nan")
    broken = stored(here, head__weight=head)
    soup = mean_of([here.basis.init.sha256, broken])
    with pytest.raises(EvaluationError, match=f"not finite on held_out.*{broken[:12]}"):
        evaluator.scores([soup], here.data.split("held_out"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head__weight": torch.zeros(11, 128)}, r"tensor 'head.weight' \[11, 128\].*not fit"),
        ({"head__weight": None}, r"has no tensor 'head.weight', which the model"),
        ({"extra": torch.zeros(2)}, r"tensor 'extra' \[2\].*does not fit the model"),
    ],
)
def test_weights_of_another_model_are_refused_with_the_tensor_named(here, evaluator, changes, said):
    split = here.data.split("held_out")
    with pytest.raises(EvaluationError, match=said):
        evaluator.scores([mean_of([stored(here, **changes)])], split)
    # The live model is not left half-changed.
    after, fresh = (
        e.scores([mean_of([here.basis.init.sha256])], split)
        for e in (evaluator, LocalEvaluator(here.task, here.data, here.checkpoints, Setting()))
    )
    assert after == fresh


def test_a_saved_soup_scores_as_the_candidate_did(here, evaluator):
    head = here.checkpoints.load(here.basis.init.sha256)["head.weight"]
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    other = stored(here, head__weight=head + noise)
    soup = weight_soup([(here.basis.init.sha256, 3), (other, 1)], 4)
    ref = evaluator.save(soup)
    split = here.data.split("held_out")
    assert evaluator.scores([soup], split) == evaluator.scores([mean_of([ref.sha256])], split)
    saved = here.checkpoints.load(ref.sha256)["head.weight"]
    by_hand = ((3 * head.double() + (head + noise).double()) / 4).float()
    assert torch.equal(saved, by_hand)
    assert evaluator.save(soup) == ref
