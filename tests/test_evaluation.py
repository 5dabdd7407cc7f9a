"""Evaluation: what a recipe can reach, what is remembered, and what a model scores."""

import inspect

import msgspec
import numpy as np
import pytest
import torch
from shared import Small, ingredient, scores, small, split

from soupray.core.candidates import WeightSoup, mean_of, weight_soup
from soupray.core.errors import EvaluationError
from soupray.core.ports import Hints, Reached
from soupray.core.records import CheckpointRef, Rejected, Scores, Setting, Split
from soupray.core.requests import Failures, Fisher, Temperature, TensorNames
from soupray.core.trials import Pool
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator, reaches
from soupray.evaluation.live_model import predict
from soupray.evaluation.local import LocalWorkers, ahead
from soupray.evaluation.schedule import FirstReaching, Goal
from soupray.evaluation.selection import HeldOutSelection
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.testing.linear import Toy, toy

N = 100
HELD_OUT = split("held_out", N, role="held_out")
TEST = split("test", N, role="test")
TRAIN = split("train", N, role="train")
SPLITS = [HELD_OUT, TRAIN]
ANCHOR = CheckpointRef(sha256="anchor", size_bytes=1)
POOL = Pool(init=ANCHOR, anchor=ANCHOR, ingredients=(ingredient("a", scores(7, N)),))


class Counting:
    """An evaluator whose scores are a table."""

    def __init__(self, table: dict[WeightSoup, int]):
        self._table = table
        self.asked: list[tuple[WeightSoup, str]] = []

    def scores(self, candidates, split):
        self.asked += [(c, split.name) for c in candidates]
        return [scores(self._table[c], N, split.digest) for c in candidates]

    def first_reaching(self, candidates, split, bound, accept, hints=None):
        results: list[Scores | Rejected] = []
        for candidate in candidates:
            results += self.scores([candidate], split)
            if reaches(results[-1], bound, accept):
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def measure(self, requests, split):
        self.asked += [(r, split.name) for r in requests]
        return [0.5 for _ in requests]

    def save(self, candidate):
        raise NotImplementedError


def soups(count: int) -> list[WeightSoup]:
    return [mean_of([f"m{i}"]) for i in range(count)]


@pytest.mark.parametrize("role", ["train", "rank", "test", "shift"])
def test_a_selection_is_made_of_held_out_and_training_data_and_of_nothing_else(role):
    said = f"see held-out and training data only.*'x' has role '{role}'"
    with pytest.raises(EvaluationError, match=said):
        HeldOutSelection(Counting({}), POOL, [split("x", N, role=role), TRAIN])
    if role != "train":
        with pytest.raises(EvaluationError, match=said):
            HeldOutSelection(Counting({}), POOL, [HELD_OUT, split("x", N, role=role)])


def test_a_selection_needs_an_ingredient():
    with pytest.raises(EvaluationError, match="the pool is empty"):
        HeldOutSelection(Counting({}), msgspec.structs.replace(POOL, ingredients=()), SPLITS)


def test_a_selection_asks_the_evaluator_about_held_out_data():
    a, b = soups(2)
    evaluator = Counting({a: 3, b: 5})
    selection = HeldOutSelection(evaluator, POOL, SPLITS)
    assert [s.correct for s in selection.scores([b, a])] == [5, 3]
    reached = selection.first_reaching([a, b], 4 / N, "ge")
    assert reached.hit
    assert [s.correct for s in reached.results] == [3, 5]
    selection.measure([Temperature(candidate=a)])
    assert {name for _, name in evaluator.asked} == {"held_out"}


def test_only_what_is_about_training_data_is_measured_there():
    (a,) = soups(1)
    evaluator = Counting({})
    selection = HeldOutSelection(evaluator, POOL, SPLITS)
    selection.measure([Fisher(checkpoint="m0", samples=3)])
    selection.measure([Failures(fine_tuned=a, reference=a)])
    assert [name for _, name in evaluator.asked] == ["train", "train"]


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
    selection = HeldOutSelection(Counting({}), POOL, SPLITS)
    assert sorted(public(selection)) == [
        "excess",
        "first_reaching",
        "measure",
        "pool",
        "proxies",
        "proxy_scores",
        "scores",
        "tau",
        "value",
    ]
    found = reachable(selection, {})
    assert POOL in found  # it does look
    assert not [x for x in found if isinstance(x, Counting | Split)]
    assert not [x for x in found if "split" in public(x) and not isinstance(x, Scores)]


def test_no_method_of_a_selection_takes_a_split_and_nothing_can_be_replaced():
    selection = HeldOutSelection(Counting({}), POOL, SPLITS)
    for name, method in public(selection).items():
        if callable(method):
            assert "split" not in inspect.signature(method).parameters
            with pytest.raises(TypeError):
                method([], split=TEST)
        with pytest.raises(AttributeError):
            setattr(selection, name, None)
    with pytest.raises(AttributeError):
        selection.anything = None  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


class Watched:
    """Local workers that say what they were asked to run."""

    def __init__(self, workers):
        self._workers, self.ran = workers, []

    def evaluate(self, candidates, splits, done):
        self.ran += [(c, s.name) for c in candidates for s in splits]
        self._workers.evaluate(candidates, splits, done)

    def decide(self, schedule, candidates, split, tau):
        reached = self._workers.decide(schedule, candidates, split, tau)
        self.ran += [(c, split.name) for c in candidates[: len(reached.results)]]
        return reached

    def measure(self, requests, split):
        return self._workers.measure(requests, split)


def watched(world: Toy) -> tuple[Watched, StoredEvaluator]:
    """A new evaluator over the world's store: as another process, later."""
    fresh = Watched(LocalWorkers(world.task, world.data, world.checkpoints, world.setting))
    cache = EvaluationCache(world.checkpoints, world.setting, world.basis.split("train"))
    return fresh, StoredEvaluator(Site(fresh, cache, world.setting))


def test_what_was_scored_once_is_not_asked_again_by_anybody(world):
    a, b, c = (mean_of(world.pool.checkpoints[:k]) for k in (2, 3, 4))
    test = world.basis.split("test")
    first, evaluator = watched(world)
    scored = evaluator.scores([a, b, a], test)
    assert first.ran == [(a, "test"), (b, "test")]
    second, again = watched(world)
    assert again.scores([a, b, a], test) == scored
    assert second.ran == []
    again.scores([b, c], test)
    assert second.ran == [(c, "test")]
    other, elsewhere = watched(world._replace(setting=Setting(batch_size=10)))
    elsewhere.scores([a], test)
    assert other.ran == [(a, "test")]


def test_what_is_known_of_a_soup_is_of_the_training_data_that_gave_its_statistics(tmp_path):
    world = toy(tmp_path, 2)
    single, soup = mean_of(world.pool.checkpoints[:1]), mean_of(world.pool.checkpoints[:2])
    held_out, train = world.basis.split("held_out"), world.basis.split("train")
    here = EvaluationCache(world.checkpoints, world.setting, train)
    made, asked = Rejected(seen=8, correct=1, bound=80), TensorNames(checkpoint="a" * 64)
    for model in (single, soup):
        here.put(model, world.evaluator.predictions(model, held_out))
        here.put_decision(model, held_out, (80, "ge", None), made)
    here.put_answer(asked, held_out, ("head.weight",))

    def known(of: Split) -> tuple[bool, ...]:
        cache = EvaluationCache(world.checkpoints, world.setting, of)
        found = [cache.find(m, held_out) for m in (single, soup)]
        found += [cache.decision(m, held_out, (80, "ge", None)) for m in (single, soup)]
        return tuple(f is not None for f in (*found, cache.answer(asked, held_out)))

    assert known(train) == (True, True, True, True, True)
    other = msgspec.structs.replace(train, digest="f" * 64)
    assert known(other) == (True, False, True, False, False)


def test_every_result_is_counted_once_wherever_it_came_from(world):
    candidates = [mean_of(world.pool.checkpoints[k : k + 2]) for k in range(4)]
    _, evaluator = watched(world)
    far = world.basis.split("far")
    evaluator.scores(candidates[:3], far)
    counted = []
    _, again = watched(world)
    again.on_result = counted.append
    again.scores(candidates, far)
    assert sum(counted) == 4


@pytest.mark.parametrize("accept", ["ge", "gt"])
@pytest.mark.parametrize("hinted", [False, True])
def test_first_reaching_decides_as_a_plain_loop_and_once(world, accept, hinted):
    held_out = world.basis.split("held_out")
    candidates = [mean_of(world.pool.checkpoints[k : k + 3]) for k in range(4)]
    counts = [s.correct for s in toy_scores(world, candidates)]
    order = tuple(np.random.default_rng(0).permutation(held_out.size).tolist())
    hints = Hints(lambda candidate: order, None) if hinted else None
    for bound in sorted({c + d for c in counts for d in (-1, 0, 1)}):
        hits = [c > bound if accept == "gt" else c >= bound for c in counts]
        _, evaluator = watched(world)
        reached = evaluator.first_reaching(candidates, held_out, bound, accept, hints)
        assert reached.hit == any(hits)
        upto = hits.index(True) + 1 if any(hits) else len(hits)
        assert len(reached.results) == upto
        for result, count in zip(reached.results, counts, strict=False):
            assert isinstance(result, Rejected) or result.correct == count
        again, repeated = watched(world)
        assert repeated.first_reaching(candidates, held_out, bound, accept, hints) == reached
        assert again.ran == []


def test_a_linear_soup_is_given_up_at_its_first_wrong_samples(world):
    # Its logits are the mean of its ingredients': what it gets wrong is expected exactly.
    n, batch = world.pool.ingredients[0].held_out.n, world.setting.batch_size
    candidates = [mean_of(world.pool.checkpoints[k : k + 2]) for k in range(1, 4)]
    best = max(s.correct for s in toy_scores(world, candidates))
    bound = best + 1
    reached = world.selection().first_reaching(candidates, bound / n, "ge")
    enough = -(-(n - bound + 1) // batch) * batch
    assert [r.seen for r in reached.results] == [enough] * 3
    assert enough < n


def test_the_next_two_checkpoints_come_while_the_present_one_runs(tmp_path, monkeypatch):
    world = toy(tmp_path, 5)
    fresh = Checkpoints(open_store("memory://"), tmp_path / "node")
    for path in world.checkpoints.store.list("weights"):
        fresh.store.put(path, world.checkpoints.store.get(path))
    get_range, asked = fresh.store.get_range, set()

    def watched(path, start, length):
        asked.add(path)
        return get_range(path, start, length)

    monkeypatch.setattr(fresh.store, "get_range", watched)
    candidates = [mean_of([sha]) for sha in world.pool.checkpoints]
    workers = LocalWorkers(world.task, world.data, fresh, world.setting)
    held_out = world.basis.split("held_out")
    order = lambda index: tuple(range(held_out.size))  # noqa: E731
    schedule = FirstReaching(5, order, world.setting.batch_size, Goal(0, "ge"), "fp32")
    assert workers.decide(schedule, candidates, held_out, None).hit
    fresh.background.shutdown()  # when what it began is there
    assert asked == {f"weights/{sha}.safetensors" for sha in world.pool.checkpoints[:3]}
    # A greedy soup's candidates have all but one in common; the last has none after it.
    first, *others = world.pool.checkpoints
    soups = [mean_of([first, other]) for other in others]
    assert [ahead(soups, at) for at in range(4)] == [others[1:3], others[2:4], others[3:], []]


def toy_scores(world: Toy, candidates):
    """By numpy, from the weights as stored."""
    images, labels = world.data.samples(world.basis.split("held_out"))
    x = images.reshape(len(images), -1) / 255 - 0.5
    found = []
    for candidate in candidates:
        w = world.weights(candidate)["head.weight"].numpy().astype(float)
        right = (x @ w.T).argmax(axis=1) == labels
        found.append(scores(right.tolist()))
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Small:
    return small(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def evaluator(here) -> StoredEvaluator:
    return evaluator_of(here)


def evaluator_of(here: Small) -> StoredEvaluator:
    workers = LocalWorkers(here.task, here.data, here.checkpoints, here.spec.setting)
    return StoredEvaluator(Site(workers, workers.cache, here.spec.setting))


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
    full, features = predict(model, here.task, images, setting)
    assert (full.shape, full.dtype) == ((20, 10), np.float32)
    assert (features.shape, features.dtype) == ((20, 128), np.float32)
    for n in (1, 7, 10, 13):
        assert (predict(model, here.task, images[:n], setting)[0] == full[:n]).all()


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


def test_a_weight_that_is_nan_is_an_error_that_names_the_ingredients(here, evaluator):
    head = here.checkpoints.load(here.basis.init.sha256)["head.weight"].clone()
    head[0, 0] = float("nan")
    broken = stored(here, head__weight=head)
    soup = mean_of([here.basis.init.sha256, broken])
    with pytest.raises(EvaluationError, match=f"not finite.*{broken[:12]}"):
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
        for e in (evaluator, evaluator_of(here))
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
