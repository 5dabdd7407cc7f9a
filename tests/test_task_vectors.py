"""TIES, DARE, task arithmetic and SLERP: by hand, and against the papers' formulas."""

import math

import msgspec
import numpy as np
import pytest
import torch
from shared import scores
from test_weights import Model, mix

from soupray.core.candidates import Candidate, LayerSoup, mean_of
from soupray.core.records import decode, encode
from soupray.core.requests import Gram, Threshold
from soupray.core.task_vectors import DareSoup, TiesSoup
from soupray.maths import task_vectors, weights
from soupray.maths.task_vectors import elected_mean, kept_entries, split_mix, threshold_of
from soupray.recipes import BY_NAME
from soupray.recipes.slerp import shares_at
from soupray.recipes.task_vectors import SCALES
from soupray.testing.linear import Toy, toy, truth

SIZES = {"a": (7, 5), "b": (11,), "c": (2, 3, 4)}
N = sum(math.prod(shape) for shape in SIZES.values())


def random_models(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Model]:
    """theta_0 and `count` models around it; with a counter and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(5)

    def draw(scale: float) -> dict[str, torch.Tensor]:
        return {n: scale * torch.randn(s, generator=generator) for n, s in SIZES.items()}

    origin = draw(1.0)
    models = {"zero": origin}
    for i in range(count):
        change = draw(0.1 * (i + 1))
        models[f"m{i}"] = {n: origin[n] + change[n] for n in SIZES}
    found = {}
    for i, (name, model) in enumerate(models.items()):
        fixed = {"steps": torch.tensor(7), "bn.running_mean": torch.full((2,), float(i))}
        found[name] = Model({n: t.to(dtype) for n, t in model.items()} | fixed)
    return found


def flat(model: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([model[n].double().reshape(-1) for n in SIZES])


def published_ties(origin: torch.Tensor, models: list[torch.Tensor], keep: float) -> torch.Tensor:
    """Trim, elect, disjoint mean, written over whole vectors as the paper's algorithm 1 has it."""
    vectors = torch.stack([m - origin for m in models])
    count = int(keep * vectors.shape[1])
    for row in vectors:
        row[row.abs().argsort(descending=True)[count:]] = 0
    gamma = torch.sign(vectors.sum(0))
    merged = torch.zeros_like(gamma)
    for p in range(len(merged)):
        agreeing = [float(t) for t in vectors[:, p] if t != 0 and torch.sign(t) == gamma[p]]
        merged[p] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def ties_soup(models: dict[str, Model], keep: float, scale: float) -> TiesSoup:
    origin, *rest = models
    parts = tuple(
        (
            name,
            threshold_of(
                [task_vectors.magnitudes(models[name][n], models[origin][n]) for n in SIZES],
                N,
                keep,
            ),
        )
        for name in rest
    )
    return TiesSoup(origin=origin, parts=parts, scale=scale)


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.4, 2.5])
def test_ties_is_the_published_algorithm_on_random_tensors(keep, scale):
    models = random_models(5)
    made = mix(models, ties_soup(models, keep, scale))
    origin, *others = map(flat, models.values())
    expected = origin + scale * published_ties(origin, others, keep)
    assert torch.allclose(flat(made), expected, atol=1e-6)
    assert made["steps"].item() == 7
    assert made["bn.running_mean"].tolist() == [3.0, 3.0]  # the mean of 1 to 5, without theta_0


def test_ties_by_hand():
    # Changes of three models; of six entries each, the largest half is kept.
    changes = [
        [4.0, -1.0, 0.5, 3.0, 0.0, -2.0],
        [2.0, 5.0, 0.1, -4.0, 0.2, -1.0],
        [-1.0, 3.0, 0.3, -6.0, 0.4, 2.0],
    ]
    models = {"zero": Model(w=torch.full((6,), 10.0))}
    models |= {f"m{i}": Model(w=10 + torch.tensor(row)) for i, row in enumerate(changes)}
    thresholds = [threshold_of([torch.tensor(row).abs()], 6, 0.5) for row in changes]
    assert thresholds == [2.0, 2.0, 2.0]
    soup = TiesSoup(
        origin="zero", parts=tuple(zip(("m0", "m1", "m2"), thresholds, strict=True)), scale=2.0
    )
    # Kept: 4 . . 3 . -2 | 2 5 . -4 . . | . 3 . -6 . 2. Sums 6 8 0 -7 0 0; means of those that have
    # the sign of the sum: 3, 4, none, -5, none, none. Twice that is added.
    assert mix(models, soup)["w"].tolist() == [16.0, 18.0, 10.0, 0.0, 10.0, 10.0]


def test_equal_magnitudes_are_all_kept_and_one_at_least():
    assert threshold_of([torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 2.0]])], 4, 0.5) == 2.0
    assert threshold_of([torch.tensor([1.0, 3.0, 2.0])], 3, 0.01) == 3.0
    assert threshold_of([torch.tensor([1.0, 3.0, 2.0])], 3, 1.0) == 1.0


def test_models_that_agree_have_their_mean():
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -4.0])
    assert elected_mean([first, second]).tolist() == [2.0, -3.0]


def test_thresholds_are_asked_of_the_weights_and_leave_out_what_no_gradient_trains(tmp_path):
    world = toy(tmp_path, [truth(), truth() * 2])
    sha, zero = world.pool.checkpoints[0], world.pool.init.sha256
    found = world.selection().measure(
        [Threshold(checkpoint=sha, origin=zero, keep=k) for k in (0.25, 1.0)]
    )
    (model,) = [i for i in world.pool.ingredients if i.checkpoint.sha256 == sha]
    weights = world.checkpoints.load(model.checkpoint.sha256)["head.weight"]
    sizes = sorted((weights - world.task.init()["head.weight"]).abs().reshape(-1).tolist())
    assert found == pytest.approx([sizes[-3], sizes[0]])


def test_split_mix_is_the_published_generator():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert split_mix(1234567, 0, 5).tolist() == published
    assert split_mix(1234567, 2, 4).tolist() == published[2:4]  # by position, in any chunks


def test_what_dare_keeps_is_the_share_that_was_asked_for():
    kept = kept_entries(42, slice(0, 100_000), 0.9)
    # Binomial: a tenth, with a standard deviation of 95; five of them happen by no chance.
    assert abs(int(kept.sum()) - 10_000) < 475
    assert kept_entries(42, slice(0, 50), 0.0).all()
    first = (split_mix(42, 0, 50) >> np.uint64(11)) / 2**53
    assert (kept[:50] == (first >= 0.9)).all()


def dare_soup(models: dict[str, Model], drop: float, scale: float, seed: int = 3) -> DareSoup:
    origin, *rest = models
    return DareSoup(origin=origin, models=tuple(rest), drop=drop, seed=seed, scale=scale)


def test_dare_keeps_some_changes_and_enlarges_them(monkeypatch):
    models = random_models(1)
    soup = dare_soup(models, 0.75, 1.0)
    change = flat(mix(models, soup)) - flat(models["zero"])
    whole = flat(models["m0"]) - flat(models["zero"])
    kept = change != 0
    assert 0 < int(kept.sum()) < N / 2
    assert torch.allclose(change[kept], 4 * whole[kept], atol=1e-6)
    monkeypatch.setattr(task_vectors, "CHUNK", 5)
    assert torch.equal(flat(mix(models, soup)) - flat(models["zero"]), change)
    other = flat(mix(models, dare_soup(models, 0.75, 1.0, seed=4))) - flat(models["zero"])
    assert not torch.equal(other != 0, kept)


def test_dare_of_several_models_is_the_scaled_mean_of_the_single_ones():
    models = random_models(3)
    origin = flat(models["zero"])
    each = [
        flat(mix(models, DareSoup(origin="zero", models=(m,), drop=0.5, seed=3, scale=1.0)))
        - origin
        for m in ("m0", "m1", "m2")
    ]
    made = flat(mix(models, dare_soup(models, 0.5, 1.5))) - origin
    assert torch.allclose(made, 1.5 * torch.stack(each).mean(0), atol=1e-6)
    assert [set((e != 0).tolist()) for e in each] == [{True, False}] * 3
    assert not torch.equal(each[0] != 0, each[1] != 0)  # each model has numbers of its own


def test_without_dropping_dare_is_the_mean_and_so_is_ties_of_one_model_that_keeps_all():
    models = random_models(4)
    mean = flat(mix(models, mean_of(["m0", "m1", "m2", "m3"])))
    assert torch.allclose(flat(mix(models, dare_soup(models, 0.0, 1.0))), mean, atol=1e-6)
    alone = {n: models[n] for n in ("zero", "m0")}
    assert torch.equal(flat(mix(alone, ties_soup(alone, 1.0, 1.0))), flat(models["m0"]))


def test_a_mixer_is_right_after_any_sequence_and_merges_once_for_all_scales(monkeypatch):
    models = random_models(3)
    made = []
    plain = weights.direction
    monkeypatch.setattr(weights, "direction", lambda *a: made.append(a[1]) or plain(*a))
    ties = [ties_soup(models, 0.3, scale) for scale in (1.0, 0.5, 2.0)]
    dare = [dare_soup(models, 0.5, scale) for scale in (1.0, 0.5)]
    means = [mean_of(["m0", "m1"]), mean_of(["m0", "m1", "m2"])]
    fresh = {soup: mix(models, soup) for soup in (*ties, *dare, *means)}
    made.clear()
    mixer = weights.Mixer(models.__getitem__)
    sequence = [*ties, means[0], ties[0], *dare, means[1], *means, dare[1], ties[2], dare[0]]
    for soup in sequence:
        again = dict(mixer.tensors(soup))
        assert all(torch.equal(again[n], tensor) for n, tensor in fresh[soup].items())
    # Anew after a mean or another merge: ties, ties, dare, dare, ties, dare.
    assert made == [*SIZES] * 6
    tensors = mixer.tensors(ties[1])
    next(tensors)  # given up after one tensor
    again = dict(mixer.tensors(ties[0]))
    assert all(torch.equal(again[n], tensor) for n, tensor in fresh[ties[0]].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_double_and_keeps_its_type(dtype):
    models = random_models(3, dtype)
    for soup in (ties_soup(models, 0.3, 1.0), dare_soup(models, 0.5, 1.0)):
        made = mix(models, soup)
        assert made["a"].dtype == dtype
        wide = {n: Model({k: t.float() if t.is_floating_point() else t for k, t in m.items()})
                for n, m in models.items()}  # fmt: skip
        assert torch.equal(mix(wide, soup)["a"].to(dtype), made["a"])


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("scale", float("nan"), "the scale nan is not a finite number"),
        ("parts", [["0" * 64, float("inf")]], "the threshold inf is not a finite number"),
        ("parts", [], "length >= 1"),
        ("drop", 1.0, "< 1"),
        ("models", [], "length >= 1"),
        ("seed", -1, ">= 0"),
        ("origin", "../../../etc/passwd", "matching regex"),
        ("models", ["x" * 64], "matching regex"),
    ],
)
def test_records_from_outside_are_checked(field, wrong, said):
    sha = "0" * 64
    right = {
        "ties_soup": {"origin": sha, "parts": [[sha, 0.5]], "scale": 1.0},
        "dare_soup": {"origin": sha, "models": [sha], "drop": 0.5, "seed": 1, "scale": 1.0},
    }
    for kind, fields in right.items():
        whole = msgspec.convert({"type": kind, **fields}, Candidate)
        assert decode(encode(whole), Candidate) == whole
        if field in fields:
            with pytest.raises(msgspec.ValidationError, match=said):
                msgspec.convert({"type": kind, **fields, field: wrong}, Candidate)


class Scaled:
    """A selection whose best candidate is told by its scale or share."""

    def __init__(self, pool, right):
        self.pool, self.asked, self._right = pool, [], right

    def measure(self, requests):
        return [0.25] * len(requests)

    def scores(self, candidates):
        self.asked += candidates
        return [scores(self._right(c), 100) for c in candidates]

    def value(self, result) -> float:
        return result.correct / result.n


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Toy:
    return toy(tmp_path_factory.mktemp("task_vectors"), 2)


def test_task_arithmetic_by_hand_and_at_one_it_is_the_uniform_soup(world):
    zero, (a, b) = world.pool.init.sha256, world.pool.checkpoints
    selection = Scaled(world.pool, lambda c: 60 if c.coefficients[0] == -0.5 else 50)
    (found,) = BY_NAME["task_arithmetic"].run(selection)
    # theta_0 + 1.5 (tau_a + tau_b) / 2 = -1/2 theta_0 + 3/4 theta_a + 3/4 theta_b
    assert found.candidate.parts == ((zero, -2), (a, 3), (b, 3))
    assert (found.candidate.denominator, found.options) == (4, {"scale": 1.5})
    assert selection.asked[SCALES.index(1)] == mean_of([a, b])
    assert [step.accepted for step in found.trace] == [s == 1.5 for s in SCALES]


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare"])
def test_of_equally_good_scales_the_one_nearest_to_a_mean_is_taken(world, name):
    selection = Scaled(world.pool, lambda c: 50)
    (found,) = BY_NAME[name].run(selection)
    assert found.options["scale"] == 1.0
    assert len(selection.asked) == 12


def test_ties_and_dare_say_how_they_were_made(world):
    zero, shas = world.pool.init.sha256, tuple(world.pool.checkpoints)
    selection = Scaled(world.pool, lambda c: 50)
    (ties,) = BY_NAME["ties"].run(selection, options={"keep": 0.4})
    assert ties.options == {"keep": 0.4, "scale": 1.0}
    assert ties.candidate == TiesSoup(
        origin=zero, parts=tuple((sha, 0.25) for sha in shas), scale=1.0
    )
    assert ties.candidate.checkpoints == (zero, *shas)
    (dare,) = BY_NAME["dare"].run(selection, options={"drop": 0.5, "seed": 9})
    assert dare.candidate == DareSoup(origin=zero, models=shas, drop=0.5, seed=9, scale=1.0)
    assert dare.candidate.coefficients == (0.0, 0.5, 0.5)


def test_slerp_of_equal_lengths_keeps_the_length_and_divides_the_angle():
    # At a right angle and t = 1/2, both have sin(45) = .7071; at 60 degrees, sin(30) / sin(60).
    assert shares_at(0.5, ((4.0, 0.0), (0.0, 4.0))) == pytest.approx((0.707107, 0.707107))
    assert shares_at(0.5, ((1.0, 0.5), (0.5, 1.0))) == pytest.approx((0.577350, 0.577350))
    generator = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, generator=generator).double())
    gram = ((1.0, float(a @ b)), (float(a @ b), 1.0))
    for t in (0.1, 0.35, 0.9):
        first, second = shares_at(t, gram)
        point = first * a + second * b
        assert float(point.norm()) == pytest.approx(1)
        assert math.acos(float(a @ point)) == pytest.approx(t * math.acos(float(a @ b)))


def test_slerp_is_linear_where_there_is_no_angle_or_no_one_arc():
    for gram in (
        ((0.0, 0.0), (0.0, 1.0)),
        ((1.0, 2.0), (2.0, 4.0)),
        ((1.0, -1.0), (-1.0, 1.0)),
        ((1.0, 0.9996), (0.9996, 1.0)),
    ):
        assert shares_at(0.3, gram) == (0.7, 0.3)
    assert shares_at(0.3, ((1.0, 0.9994), (0.9994, 1.0))) != (0.7, 0.3)


def test_slerp_goes_between_the_two_best_models_by_tensor(world):
    zero, (a, b) = world.pool.init.sha256, world.pool.checkpoints

    class Angles(Scaled):
        def measure(self, requests):
            assert requests == [Gram(checkpoints=(a, b), origin=zero)]
            return [{"x": ((1.0, 0.0), (0.0, 1.0)), "y": ((1.0, 1.0), (1.0, 1.0))}]

    (found,) = BY_NAME["slerp"].run(Angles(world.pool, lambda c: 50))
    assert found.options == {"t": 0.0}
    selection = Angles(
        world.pool,
        lambda c: 60 if isinstance(c, LayerSoup) and c.rest == (0, 500000, 500000) else 50,
    )
    (found,) = BY_NAME["slerp"].run(selection)
    assert found.options == {"t": 0.5}
    assert found.candidate == LayerSoup(
        checkpoints=(zero, a, b),
        layers=((("x",), (-414214, 707107, 707107)), (("y",), (0, 500000, 500000))),
        rest=(0, 500000, 500000),
        denominator=1000000,
    )
    assert (selection.asked[0], selection.asked[10]) == (mean_of([a]), mean_of([b]))
    assert len(selection.asked) == 11


def test_slerp_of_linear_models_is_the_formula(world):
    (found,) = BY_NAME["slerp"].run(world.selection())
    k = 3
    made = world.weights(found.trace[k].candidate)["head.weight"].double()
    zero = world.task.init()["head.weight"].double()
    one, two = (
        world.checkpoints.load(sha)["head.weight"].double() - zero for sha in world.pool.checkpoints
    )
    w = torch.acos((one * two).sum() / (one.norm() * two.norm()))
    t = k / 10
    expected = (
        zero + torch.sin((1 - t) * w) / torch.sin(w) * one + torch.sin(t * w) / torch.sin(w) * two
    )
    assert torch.allclose(made, expected, atol=1e-5)
