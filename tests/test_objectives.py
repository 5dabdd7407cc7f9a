"""Several labels for each sample, and numbers: scores by hand, decisions, losses, errors."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import demo
from sklearn import metrics as oracle

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Objective, Predictions, Scores, Split, digest
from soupray.core.requests import Gradient, Margins
from soupray.data.targets import labels_of, numbers_of
from soupray.inference.meaning import Meaning, Wanted
from soupray.maths.losses import loss_sum
from soupray.maths.metrics import as_read, margins, right_mask, score, value
from soupray.maths.objectives import (
    average_precision,
    best_thresholds,
    r_squared,
    rank_correlation,
)
from soupray.recipes import BY_NAME
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import Earlier
from soupray.reporting.ranking import measured
from soupray.search.state import basis_key
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.testing.linear import toy, truth
from soupray.training.losses import TrainingLoss, sample_weights

SEVERAL = Objective(kind="multi_label")
NEAR = Objective(kind="regression", tolerance=0.5)


def said(outputs, targets, objective: Objective) -> Predictions:
    outputs = np.asarray(outputs, np.float32)
    dtype = np.uint8 if objective is SEVERAL else np.float32
    split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(outputs),
                  classes=outputs.shape[1], objective=objective)  # fmt: skip
    return Predictions(split=split, logits=outputs, labels=np.asarray(targets, dtype))


LABELS = said(
    [[2, -1, 1], [1, 1, -3], [-1, -2, -1], [0, 5, 1]],
    [[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]],
    SEVERAL,
)
"""Right are samples 0 and 2: sample 1 has a label too many, and a logit of 0 says no."""


def test_scores_of_several_labels_by_hand():
    found = score(LABELS)
    assert (found.n, found.correct) == (4, 2)
    assert found.right_mask().tolist() == [True, False, True, False]
    assert found.by_class == ((3, 2, 2), (1, 2, 1), (2, 2, 2))
    losses = [math.log(1 + math.exp(-m)) for m in (2, 1, 1, 1, -1, 3, 1, 2, 1, 0, 5, 1)]
    assert found.nll == pytest.approx(sum(losses) / 12)
    assert value(found, "micro_f1") == pytest.approx(2 * 5 / (6 + 6))
    assert value(found, "macro_f1") == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)
    # Class 0: 2, 1, 0, -1 with positives at 2, 1, 0. Class 1: the positive is first. Class 2: the
    # two positives share the first place.
    assert value(found, "map") == 1.0
    assert margins(LABELS).tolist() == [1, -1, 1, 0]
    assert measured(found).read("micro_f1") == value(found, "micro_f1")


def test_scores_of_a_regression_by_hand():
    found = score(said([[1.0], [2.5], [4.0], [0.0]], [[1.5], [2.0], [3.0], [1.0]], NEAR))
    assert found.right_mask().tolist() == [True, True, False, False]  # the bound is included
    assert found.nll == pytest.approx((0.25 + 0.25 + 1 + 1) / 4)
    assert found.others == pytest.approx({"mae": 0.75, "r2": 1 - 2.5 / 2.1875, "spearman": 1.0})
    assert (value(found, "mae"), as_read(-0.75, "mae")) == (-0.75, 0.75)
    assert (found.ece, found.by_class) == (0.0, ())
    two = score(said([[0.0, 1.0], [0.0, 0.0]], [[0.4, 1.4], [0.0, 0.6]], NEAR))
    assert two.correct == 1  # both outputs have to be near


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_metrics_are_those_of_scikit_learn(seed, n, classes):
    draw = np.random.default_rng(seed)
    outputs = np.round(draw.normal(size=(n, classes)), 1).astype(np.float32)  # with ties
    there = draw.integers(0, 2, (n, classes)).astype(np.uint8)
    found = score(said(outputs, there, SEVERAL))
    yes = outputs > 0
    assert found.accuracy == pytest.approx(oracle.accuracy_score(there, yes))
    assert value(found, "micro_f1") == pytest.approx(
        oracle.f1_score(there, yes, average="micro", zero_division=0)
    )
    used = there.any(axis=0)
    if used.any():
        assert value(found, "map") == pytest.approx(
            oracle.average_precision_score(there[:, used], outputs[:, used], average="macro")
        )
        f1 = [oracle.f1_score(there[:, c], yes[:, c], zero_division=0)
              for c in np.flatnonzero(used)]  # fmt: skip
        assert value(found, "macro_f1") == pytest.approx(np.mean(f1))
    p = 1 / (1 + np.exp(-outputs.astype(float)))
    assert found.nll == pytest.approx(oracle.log_loss(there.ravel(), p.ravel(), labels=[0, 1]))
    targets = np.round(draw.normal(size=(n, classes)), 1).astype(np.float32)
    found = score(said(outputs, targets, NEAR))
    both = targets.astype(float), outputs.astype(float)
    assert found.others["mae"] == pytest.approx(oracle.mean_absolute_error(*both))
    assert found.others["r2"] == pytest.approx(oracle.r2_score(*both))
    assert found.nll == pytest.approx(oracle.mean_squared_error(*both))


def test_degenerate_targets_have_the_values_that_are_documented():
    constant = np.full(4, 2.0)
    assert r_squared(constant, constant) == 1
    assert r_squared(constant + 1, constant) == 0
    assert rank_correlation(np.arange(4.0), constant) == 0
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 40])) == 1
    assert average_precision(np.array([0.5, 0.5, 0.1]), np.array([1, 0, 0], bool)) == 0.5
    nothing = score(said([[1.0, -1]], [[0, 0]], SEVERAL))
    assert value(nothing, "map") == 0.0


def test_thresholds_are_those_of_the_best_f1():
    outputs = np.array([[1.0, 3, -1], [2, 2, -2], [3, 1, -3], [4, 0, -4]], np.float32)
    there = np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]], np.uint8)
    assert best_thresholds(outputs, there) == (2.5, 1.5, -1.5)
    assert best_thresholds(outputs, np.zeros_like(there)) == (0.0, 0.0, 0.0)
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(60, 4)).astype(np.float32)
    labels = (logits + draw.normal(size=(60, 4)) > 0.7).astype(np.uint8)
    found = np.array(best_thresholds(logits, labels))
    for k in range(4):
        best = max(oracle.f1_score(labels[:, k], logits[:, k] > t) for t in [0, *logits[:, k]])
        assert oracle.f1_score(labels[:, k], logits[:, k] > found[k]) == pytest.approx(best)


@pytest.mark.parametrize("objective", [SEVERAL, NEAR], ids=["several", "numbers"])
def test_early_rejection_decides_as_a_plain_loop(tmp_path, objective):
    """On a hundred bounds and both kinds of comparison, in the order of the hardest samples."""
    world = toy(tmp_path, 8, objective=objective)
    held_out = world.basis.split("held_out")
    draw = np.random.default_rng(0)
    for _ in range(100):
        some = draw.choice(world.pool.checkpoints, size=(4, 2))
        candidates = [mean_of(sorted(set(pair.tolist()))) for pair in some]
        bound, accept = int(draw.integers(0, 91)), str(draw.choice(["ge", "gt"]))
        reached = world.selection().first_reaching(candidates, bound / 90, accept)
        plain = [score(world.workers.predictions(c, held_out)).correct for c in candidates]
        hits = [c > bound if accept == "gt" else c >= bound for c in plain]
        assert reached.hit == any(hits)
        assert len(reached.results) == (hits.index(True) + 1 if any(hits) else 4)
        if reached.hit:
            assert reached.results[-1].correct == plain[hits.index(True)]


@pytest.mark.parametrize("objective", [SEVERAL, NEAR], ids=["several", "numbers"])
@pytest.mark.parametrize("metric", ["nll", "map", "r2"])
def test_greedy_by_another_metric_is_greedy_by_hand(tmp_path, objective, metric):
    if metric == ("r2" if objective is SEVERAL else "map"):
        pytest.skip("not a metric of this objective")
    world = toy(tmp_path, 5, objective=objective)
    held_out = world.basis.split("held_out")
    (outcome,) = GREEDY.run(world.selection(metric=metric), Earlier(), {"accept": "ge"})

    def worth(parts) -> float:
        return value(score(world.workers.predictions(mean_of(parts), held_out)), metric)

    ranked = sorted(world.pool.checkpoints, key=lambda sha: -worth([sha]))
    kept = ranked[:1]
    for sha in ranked[1:]:
        if worth([*kept, sha]) >= worth(kept):
            kept.append(sha)
    assert sorted(outcome.candidate.checkpoints) == sorted(kept)


def test_margins_order_the_hardest_samples_first(tmp_path):
    world = toy(tmp_path, 2, objective=NEAR)
    first = world.pool.ingredients[0]
    asked = [Margins(checkpoint=first.checkpoint.sha256, logits=first.logits)]
    (found,) = world.selection().measure(asked)
    outputs = world.workers.predictions(mean_of([first.checkpoint.sha256]),
                                        world.basis.split("held_out"))  # fmt: skip
    errors = np.abs(outputs.logits.astype(float) - outputs.labels).max(axis=1)
    assert np.allclose(found, 1 - errors / 0.5)
    assert ((np.array(found) >= 0) == first.held_out.right_mask()).all()


def test_the_gradient_of_a_soup_is_that_of_its_loss(tmp_path):
    from soupray.core.candidates import LayerSoup

    world = toy(tmp_path, 2, objective=SEVERAL)
    soup = LayerSoup(
        checkpoints=tuple(world.pool.checkpoints), layers=(), rest=(1, 1), denominator=2
    )
    (slope,) = world.selection().measure([Gradient(soup=soup, beta=1.0, rows=())])
    held_out = world.basis.split("held_out")
    images, labels = world.data.samples(held_out)
    x = (torch.from_numpy(np.array(images)).float() / 255 - 0.5).flatten(1)
    weights = [world.checkpoints.load(sha)["head.weight"] for sha in soup.checkpoints]
    alpha = torch.tensor([0.5, 0.5], requires_grad=True)
    outputs = x @ (alpha[0] * weights[0] + alpha[1] * weights[1]).T
    wanted = torch.from_numpy(np.array(labels)).float()
    loss = F.binary_cross_entropy_with_logits(outputs, wanted)
    loss.backward()
    assert slope.loss == pytest.approx(float(loss), rel=1e-5)
    assert slope.coefficients[0] == pytest.approx(alpha.grad.tolist(), rel=1e-4)


def test_recipes_are_for_what_they_can_do():
    assert BY_NAME["vrf"].objectives == BY_NAME["fisher"].objectives == ("one_class",)
    assert "regression" not in BY_NAME["learned"].objectives
    for name in ("uniform", "greedy", "wise_ft", "model_stock", "ensemble"):
        assert len(BY_NAME[name].objectives) == 5


# ---- losses

SWEEPS = Path(__file__).parent.parent / "sweeps"


def test_given_weights_of_classes_by_hand():
    """Three of class 0, one of class 1; class 1 weighs four times: 4 / 7 and 16 / 7."""
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    ce = [math.log(1 + math.exp(-2)), math.log(2)]
    chosen, seen = Hyperparameters(lr=1, epochs=1), torch.tensor([0, 0, 0, 1])
    made = TrainingLoss(chosen, msgspec.UNSET, seen, given=(1.0, 4.0))
    assert float(made(outputs, targets)) == pytest.approx((ce[0] * 4 / 7 + ce[1] * 16 / 7) / 2)
    alike = TrainingLoss(chosen, msgspec.UNSET, seen, given=(3.0, 3.0))
    assert float(alike(outputs, targets)) == pytest.approx(sum(ce) / 2)
    # With the power 1, each class has the same sum, before the weights that are given.
    both = TrainingLoss(
        Hyperparameters(lr=1, epochs=1, class_weight=1), msgspec.UNSET, seen, given=(1.0, 3.0)
    )
    assert float(both(outputs, targets)) == pytest.approx((ce[0] / 3 + ce[1] * 3) / 2)
    labels = Objective(kind="multi_label")
    many = TrainingLoss(chosen, labels, torch.tensor([[1, 0]]), given=(1.0, 5.0))
    said, wanted = torch.zeros(1, 2), torch.tensor([[1, 1]])
    assert float(many(said, wanted)) == pytest.approx(math.log(2) * (1 + 5) / 2)


def test_weights_of_classes_are_by_name_and_make_other_trials():
    line = "seed: 0\n"
    plain, heavy = demo(), demo((line, f"{line}class_weights: {{nine: 2}}\n"))
    assert heavy.loss_weights == (*[1.0] * 9, 2.0)
    assert plain.loss_weights is None
    assert heavy.digest != plain.digest
    with pytest.raises(ConfigError, match=r"no class 'nin'; did you mean 'nine'\?; task.classes"):
        demo((line, f"{line}class_weights: {{nin: 2}}\n"))
    with pytest.raises(ConfigError, match="class_weights"):
        demo((line, f"{line}class_weights: {{nine: 0}}\n"))


def test_another_objective_is_another_basis_and_so_is_another_loss_of_theta_0():
    text = (SWEEPS / "digit_angle.yaml").read_text()
    one = parse(text, "x")
    other = parse(text.replace("tolerance: 0.175", "tolerance: 0.2"), "x")
    assert basis_key(one) != basis_key(other)
    names = (SWEEPS / "two_digits.yaml").read_text()
    weighed = parse(names.replace("seed: 0", "seed: 0\nclass_weights: {one: 2}"), "x")
    assert basis_key(weighed) != basis_key(parse(names, "x"))


def loss(targets, objective=msgspec.UNSET, own=None, **hparams: float) -> TrainingLoss:
    chosen = Hyperparameters(lr=1, epochs=1, **hparams)
    return TrainingLoss(chosen, objective, torch.as_tensor(targets), own)


def test_losses_by_hand():
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    ce = [math.log(1 + math.exp(-2)), math.log(2)]
    assert float(loss(targets)(outputs, targets)) == pytest.approx(sum(ce) / 2)
    focal = float(loss(targets, focal=2)(outputs, targets))
    p = [1 / (1 + math.exp(-2)), 0.5]
    assert focal == pytest.approx(sum((1 - a) ** 2 * c for a, c in zip(p, ce, strict=True)) / 2)
    # Three of class 0, one of class 1: balanced weights 4 / (2 * 3) and 4 / (2 * 1).
    weighted = float(loss([0, 0, 0, 1], class_weight=1)(outputs, targets))
    assert weighted == pytest.approx((ce[0] * 2 / 3 + ce[1] * 2) / 2)
    same = F.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert torch.equal(loss(targets, label_smoothing=0.1)(outputs, targets), same)
    several = torch.tensor([[1, 0], [1, 1]])
    bce = [math.log(1 + math.exp(-2)), math.log(2), math.log(2), math.log(2)]
    assert float(loss(several, SEVERAL)(outputs, several)) == pytest.approx(sum(bce) / 4)
    # Class 1 is in one of four samples: its positive labels weigh 3; class 0 is in three: 1/3.
    counted = [[1, 0], [1, 0], [1, 0], [0, 1]]
    weighted = float(loss(counted, SEVERAL, class_weight=1)(outputs, several))
    assert weighted == pytest.approx((bce[0] / 3 + bce[1] + bce[2] / 3 + 3 * bce[3]) / 4)
    # A label that all four have weighs 1/4, not 0; one that none has is never positive.
    everywhere = loss([[1, 0]] * 4, SEVERAL, class_weight=1)
    assert everywhere._weights.tolist() == [0.25, 4.0]
    numbers = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert float(loss(numbers, NEAR)(outputs, numbers)) == pytest.approx((1 + 9) / 4)
    huber = float(loss(numbers, NEAR, huber=1)(outputs, numbers))
    assert huber == pytest.approx((0.5 + 1 * (3 - 0.5)) / 4)


@pytest.mark.parametrize("objective", [msgspec.UNSET, SEVERAL, NEAR])
def test_the_loss_of_reports_is_the_plain_loss_of_trials(objective):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 3, generator=generator)
    targets = torch.randint(0, 2, (7, 3), generator=generator)
    targets = targets[:, 0] if objective is msgspec.UNSET else targets
    trained = float(loss(targets, objective)(outputs, targets))
    assert float(loss_sum(outputs, targets, objective)) / 7 == pytest.approx(trained)


def test_a_focal_loss_of_what_is_certain_has_a_gradient():
    """(1 - p) ** gamma has an infinite slope at p = 1 for gamma below 1: it is taken as a whole."""
    for gamma in (0.5, 1.0, 2.0):
        outputs = torch.tensor([[60.0, -60.0], [0.3, -0.2]], requires_grad=True)
        for objective, targets in (
            (msgspec.UNSET, torch.tensor([0, 1])),
            (SEVERAL, torch.tensor([[1, 0], [0, 1]])),
        ):
            found = loss(targets, objective, focal=gamma)(outputs, targets)
            (slope,) = torch.autograd.grad(found, outputs)
            assert torch.isfinite(slope).all()
            assert slope[1].abs().min() > 0


def test_weights_have_a_mean_of_one_over_the_samples_and_parts_add_up():
    targets = torch.tensor([0] * 6 + [1] * 3 + [2])
    for power in (0.3, 1.0):
        made = loss(targets, class_weight=power)
        assert float(made._weights[targets].mean()) == pytest.approx(1)
    outputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    whole = made(outputs, targets)
    parts = [made(outputs[a:b], targets[a:b]) * (b - a) / 10 for a, b in ((0, 3), (3, 10))]
    assert torch.allclose(whole, sum(parts))
    odds = sample_weights(targets, 1.0)
    by_class = [float(odds[targets == k].sum()) for k in range(3)]
    assert by_class == pytest.approx([by_class[0]] * 3)
    assert sample_weights(targets, 0.0) is None


def test_balanced_sampling_draws_classes_alike(tmp_path):
    from shared import small

    from soupray.training.loop import Loop
    from soupray.training.start import Start

    world = small(tmp_path)
    start = Start(weights=world.checkpoints.load(world.trial.init), seed=0, device="cpu")
    chosen = Hyperparameters(**(world.trial.hparams | {"balanced": 1.0}))
    made = Loop(world.task, world.data, chosen, start)
    made._odds = sample_weights(torch.tensor([0] * 190 + [1] * 10), 1.0)
    rows = torch.cat([made._order() for _ in range(50)])
    assert 0.47 < float((rows >= 190).double().mean()) < 0.53


def test_a_loss_of_the_user_is_named_where_it_breaks_its_contract(tmp_path, monkeypatch):
    from soupray.core import plugins

    (tmp_path / "ownloss.py").write_text(
        "import torch\n"
        "def good(o, t): return torch.nn.functional.cross_entropy(o, t, reduction='none') * 2\n"
        "def mean(o, t): return good(o, t).mean()\n"
        "def cut(o, t): return good(o, t).detach()\n"
        "def bad(o, t): return o / 0 + nothing\n"
        "def twofold(o, t): return good(o, t).to(torch.complex64)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load.cache_clear()
    code = plugins.digest_of("soupray.losses", "ownloss:good")
    outputs = torch.randn(3, 2, requires_grad=True)
    targets = torch.tensor([0, 1, 1])
    found = loss(targets, own=("ownloss:good", code))(outputs, targets)
    assert float(found) == pytest.approx(2 * float(F.cross_entropy(outputs, targets)))
    for name, says in {
        "mean": r"'ownloss:mean' \(.*ownloss.py\) returned \[\], not the loss of each of the 3",
        "cut": "returned losses without a gradient",
        "twofold": "returned losses of complex64; return floats",
        "bad": r"raised NameError: name 'nothing' is not defined \(.*ownloss.py:5\)",
    }.items():
        with pytest.raises(TrialError, match=says):
            loss(targets, own=(f"ownloss:{name}", code))(outputs, targets)
    with pytest.raises(TrialError, match="that of the sweep had 000000000000"):
        loss(targets, own=("ownloss:good", "0" * 64))


# ---- targets of data


def test_labels_are_matched_by_name():
    classes = ["cat", "dog", "red fox"]
    found = labels_of([["dog"], [], ("Red_Fox", "cat"), {2}, [0, 1]], classes, None, "here")
    assert found.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    named = ["red fox", "cat", "dog"]  # the dataset's own order
    found = labels_of([[0], np.array([1, 0, 1])], classes, named, "here")
    assert found.tolist() == [[0, 0, 1], [0, 1, 1]]
    tensors = torch.tensor([1.0, 0, 1], requires_grad=True), torch.ones(3, dtype=torch.bfloat16)
    assert labels_of(tensors, classes, None, "here").tolist() == [[1, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("targets", "named", "says"),
    [
        ([["cow"]], None, "sample 0 has the class 'cow'"),
        ([[3]], None, "Allowed are names, and 0 to 2"),
        (["dog"], None, "the target of sample 0 is 'dog'. Allowed are a list of names"),
        ([[0, 1, 0]], None, "lists a class twice. Give 0 and 1 for each class as an array"),
        ([np.array([0, 2, 1])], None, r"its target is an array \[3\] int64. Allowed are 0 and 1"),
        ([np.array([0.0, np.nan, 1])], None, r"array \[3\] float64"),
        ([torch.tensor([0, 1])], None, r"its target is an array \[2\]"),
        ([torch.tensor([1, 2, 0])], None, r"its target is an array \[3\] int64"),
        ([[torch.tensor([0, 1])]], None, r"has the class tensor\(\[0, 1\]\)"),
        (
            [[0]],
            ["cat", "dog", "red fox", "cat"],
            "`classes` of the dataset are cat, dog, red fox, cat",
        ),
        ([[0]], ["cat", "dog", "cow"], "`classes` of the dataset are cat, dog, cow; task.classes"),
    ],
)
def test_labels_that_are_not_understood_are_refused(targets, named, says):
    with pytest.raises(ConfigError, match=says):
        labels_of(targets, ["cat", "dog", "red fox"], named, "here: split 'train'")


def test_numbers_are_finite_and_as_many_as_the_outputs():
    assert numbers_of([1, 2.5, np.float32(3)], ["a"], "here").tolist() == [[1], [2.5], [3]]
    assert numbers_of([[1, 2], torch.tensor([3.0, 4])], ["a", "b"], "here").shape == (2, 2)
    tensors = torch.tensor([[4.0]], requires_grad=True), torch.tensor([0.5], dtype=torch.bfloat16)
    assert numbers_of(tensors, ["a"], "here").tolist() == [[4], [0.5]]
    wrong_ones = (float("nan"), math.inf, "1", None, [1, 2], True, [True], ["1"], 1e39, 10**400,
                  np.datetime64("2020-01-01"), np.complex64(1 + 2j), np.array("3"))  # fmt: skip
    for wrong in wrong_ones:
        with pytest.raises(ConfigError, match=r"here: the target of sample 1 is .*1 finite numb"):
            numbers_of([0.0, wrong], ["angle"], "here")


def test_targets_that_can_hardly_be_learnt_are_said():
    from soupray.data.targets import notes_on

    labels = np.array([[1, 0, 1], [1, 0, 0]], np.uint8)
    assert notes_on(labels, ["a", "b", "c"], SEVERAL) == (
        "all samples have the class 'a' in split 'train': nothing tells when it is there",
        "no sample has the class 'b' in split 'train': nothing tells when it is there",
    )
    numbers = np.array([[3, 0.5, 2000, 1e-6], [3, -0.5, 2010, 3e-6]], np.float32)
    same, year, small = notes_on(numbers, ["same", "fine", "year", "small"], NEAR)
    assert same == "all targets of 'same' in split 'train' are 3: there is nothing to learn"
    assert "'year' in split 'train' have mean 2e+03 and standard deviation 5;" in year
    assert "'small' in split 'train' have mean 2e-06 and standard deviation 1e-06;" in small


# ---- what a spec may say


def spec(**keys) -> SweepSpec:
    plain = {
        "name": "own",
        "task": {"kind": "timm", "model": "resnet10t", "classes": ["a", "b"], "size": 32,
                 "mean": [0.5] * 3, "std": [0.5] * 3},
        "data": {"kind": "torch", "dataset": "sweeps.digit_tasks:two_digits", "held_out": 10,
                 "size": 32},
        "objective": "multi_label",
        "init": {"trained": {"lr": 1e-3, "epochs": 1}},
        "anchor": "init",
        "search": {"trials": 1, "space": {"lr": 1e-3, "epochs": 1}},
    }  # fmt: skip
    return SweepSpec(**(plain | keys))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metric": "mae"}, "multi_label has no metric mae; write metric: accuracy, micro_f1"),
        ({"metric": "map", "objective": "one_class"}, "one_class has no metric map"),
        ({"objective": "many"}, "write one_class, multi_label, segmentation, retrieval or"),
        ({"objective": {"regression": {"tolerance": 0}}}, "tolerance"),
        ({"data": {"kind": "digits"}}, "have one class for each sample; multi_label needs kind"),
        ({"objective": {"regression": {"tolerance": math.inf}}}, "finite number"),
        ({"metric": "map", "metric_code": "0" * 64},
         "metric_code is '0.*', but the metric 'map' here has no code of yours"),
        ({"metric": "math:dist", "metric_code": "0" * 64}, "Leave metric_code out"),
        ({"data": {"kind": "torch", "dataset": "sweeps.digit_tasks:two_digits", "size": 32,
                   "held_out": 10, "label_map": "names.yaml"}}, "label_map is for one class"),
        ({"precision": "cascade"}, "precision: cascade counts one class"),
        ({"init": {"probe": {}}}, "a probe is a logistic regression for one class"),
        ({"search": {"trials": 1, "space": {"lr": 1, "epochs": 1, "label_smoothing": 0.1}}},
         "label_smoothing is for one class, not for multi_label"),
        ({"search": {"trials": 1, "space": {"lr": 1, "epochs": 1, "balanced": 1.0}}},
         "balanced is for one class"),
        ({"search": {"trials": 1, "space": {"lr": 1, "epochs": 1, "huber": 1.0}}},
         "huber is for regression"),
        ({"objective": {"regression": {"tolerance": 1}}, "search":
          {"trials": 1, "space": {"lr": 1, "epochs": 1, "focal": 1.0}}}, "focal is for classes"),
        ({"loss": "math:dist", "search": {"trials": 1, "space": {"lr": 1, "epochs": 1,
          "focal": 1.0}}}, "focal changes the losses of soupray, not your `loss`"),
        ({"loss": "math:dist", "init": {"trained": {"lr": 1, "epochs": 1, "class_weight": 1.0}}},
         "class_weight changes the losses of soupray"),
        ({"loss": "nowhere:loss"}, "there is no module 'nowhere'"),
        ({"loss": "not a module"}, "is neither module:name nor the name of an entry point"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        spec(**keys)


def test_one_output_is_for_a_regression_alone():
    task = spec().task.model_dump(mode="json") | {"classes": ["angle"]}
    assert spec(task=task, objective={"regression": {"tolerance": 1}}).targets == Objective(
        kind="regression", tolerance=1.0
    )
    for objective in ("one_class", "multi_label"):
        with pytest.raises(ConfigError, match=r"has at least two classes; task\.classes names"):
            spec(task=task, objective=objective)


def test_names_that_tables_of_predictions_cannot_have_are_refused():
    task = spec().task.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"an output cannot be called 'input'"):
        spec(task=task | {"classes": ["input"]}, objective={"regression": {"tolerance": 1}})
    with pytest.raises(ConfigError, match=r"the class 'a\|b' has a \|"):
        spec(task=task | {"classes": ["a|b", "c"]})


def test_a_registered_model_says_the_columns_of_its_predictions(tmp_path):
    """Without `params`, as MLflow checks them, they are those of `soupray predict`."""
    from soupray.reporting.model_folder import answers_of

    task = spec().task.model_dump(mode="json")
    for made in (spec(), spec(objective="one_class"), spec(objective={"regression": {
        "tolerance": 1}}, task=task | {"classes": ["x", "y"]})):  # fmt: skip
        columns = Meaning(made.task.classes, made.targets or None).columns(Wanted())
        assert {"input": str, **answers_of(made)} == columns


def test_code_that_is_not_there_is_named_before_anything_is_trained():
    from soupray.operations.estimate import dry_run
    from soupray.recipes import check_objective

    wrong = {"loss": "losses", "metric": "metrics", "augmentation": "augmentations"}
    for key, group in wrong.items():
        with pytest.raises(ConfigError, match=f"soupray.{group} 'math:dust': .* has no 'dust'"):
            dry_run(spec(**{key: "math:dust"}))
        with pytest.raises(ConfigError, match=r"'math:pi' .* is float, which cannot be called"):
            dry_run(spec(**{key: "math:pi"}))
    with pytest.raises(ConfigError, match=r"vrf is for one_class; the targets .* multi_label"):
        check_objective("vrf", "multi_label")
    check_objective("learned", "multi_label")


def test_keys_of_specs_from_before_do_not_change():
    from shared import demo

    plain = demo().model_dump(mode="json")
    assert not {"objective", "loss"} & set(plain)
    assert not {"focal", "class_weight", "balanced", "huber"} & set(plain["search"]["space"])
    changed = demo(("epochs: 2", "epochs: 2\n    focal: 1.0"))
    assert changed.digest != demo().digest


# ---- what a user gets


def test_outputs_have_the_meaning_of_the_objective():
    several = Meaning(("a", "b", "c"), SEVERAL)
    logits = np.array([[1.0, -1, 2], [-1, -1, -1]], np.float32)
    assert several.predicted(logits) == [("a", "c"), ()]
    strict = several._replace(thresholds=(1.5, -2.0, 0.0))
    assert strict.predicted(logits) == [("b", "c"), ("b",)]
    rows = several.rows(["x", "y"], logits, Wanted(probabilities=True))
    assert rows[0] == {
        "input": "x", "classes": "a|c",
        **{f"p({n})": pytest.approx(1 / (1 + math.exp(-v)))
           for n, v in zip("abc", logits[0], strict=True)},
    }  # fmt: skip
    assert several.counted(logits) == {"a": 1, "c": 1}
    numbers = Meaning(("angle",), NEAR)
    assert numbers.rows(["x"], np.array([[0.5]], np.float32), Wanted()) == [
        {"input": "x", "angle": 0.5}
    ]
    with pytest.raises(ConfigError, match="--top 2"):
        several.check(Wanted(top=2))
    with pytest.raises(ConfigError, match="outputs of a regression are numbers"):
        numbers.check(Wanted(probabilities=True))


def test_scores_that_contradict_their_logits_are_found(tmp_path):
    from soupray.core.errors import CheckpointError
    from soupray.evaluation.evidence import check_scores

    world = toy(tmp_path, [truth(), truth() * 1.1], objective=SEVERAL)
    held_out = world.basis.split("held_out")
    check_scores(world.pool.ingredients, held_out, world.checkpoints)
    first = world.pool.ingredients[0]
    lies = {"others": {"map": 0.5}, "nll": first.held_out.nll + 1}
    for name, lie in lies.items():
        wrong = msgspec.structs.replace(first.held_out, **{name: lie})
        edited = msgspec.structs.replace(first, held_out=wrong)
        with pytest.raises(CheckpointError, match="contradicts its stored logits"):
            check_scores([edited], held_out, world.checkpoints)


def test_records_say_the_objective_and_read_it_again():
    from soupray.core.records import decode, encode

    for predictions in (LABELS, said([[1.0]], [[1.0]], NEAR)):
        assert decode(encode(predictions.split), Split) == predictions.split
        assert decode(encode(score(predictions)), Scores) == score(predictions)
    assert (
        "objective"
        not in encode(msgspec.structs.replace(LABELS.split, objective=msgspec.UNSET)).decode()
    )
    assert right_mask(LABELS).tolist() == [True, False, True, False]


# ---- whole jobs


SMALL = (
    ("epochs: {integer: [6, 10]}", "epochs: 1"),
    ("epochs: 6", "epochs: 1"),
    ("shifts: [faded, grainy, moved, blurred]", "shifts: [grainy]"),
)
"""Edits by which a spec of sweeps/ trains and reports little."""


def short(name: str, folder, *edits: tuple[str, str], small: tuple[tuple[str, str], ...] = SMALL):
    """A spec of sweeps/ with few samples, two trials of one epoch and two recipes."""
    import re

    from conftest import ONE_SLOT, ROOT

    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    text = re.sub(r"recipes:\n(  .*\n)+", "recipes:\n  uniform: {}\n  ensemble: {}\n", text)
    for old, new in (
        ("trials: 8", "trials: 2"),
        ("held_out: 400", "args: {count: 200}\n  held_out: 60"),
        *small,
        ("tracking: embedded", 'tracking: "off"'),
        *ONE_SLOT.items(),
        *edits,
    ):
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def tracked(folder, sweep: str) -> tuple[str, str]:
    """An edit of `short`: MLflow with a database and artifacts in a folder."""
    from mlflow.tracking import MlflowClient

    url, kept = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
    # Otherwise MLflow puts the artifacts of a database into the current folder.
    MlflowClient(tracking_uri=url).create_experiment(sweep, artifact_location=kept)
    return 'tracking: "off"', f"tracking: {url}"


def registered(sweep: str, folder, image, params: dict) -> dict:
    """What MLflow's model of the champion says about an image, by column."""
    import io

    import mlflow
    import pandas as pd

    file = io.BytesIO()
    image.save(file, "PNG")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model(f"models:/soupray-{sweep}@champion")
        (row,) = model.predict(pd.DataFrame({"image": [file.getvalue()]}), params).to_dict(
            "records"
        )
        names = model.metadata.signature.outputs.input_names()
        assert set(names) <= row.keys()
        none = pd.DataFrame({"image": pd.Series([], dtype=object)})
        assert model.predict(none).columns.tolist() == names
        return row
    finally:
        mlflow.set_tracking_uri(None)


def handed_over(what: str, folder, image) -> tuple[str, str]:
    """The card of an exported folder, and what its example prints about an image."""
    import os
    import subprocess
    import sys

    from conftest import HANG_S, ROOT, inside

    out = folder / "hub"
    inside("export", what, "--home", folder / "home", "--format", "hub", "--output", out)
    image.save(out / "photo.png")
    card = (out / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", card.split("```python\n")[1].split("```")[0]], cwd=out,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    return card, done.stdout.strip() or done.stderr


def test_numbers_from_the_sweep_to_a_registered_model(tmp_path, without_ray):
    import ast

    from conftest import inside, leaderboard

    import soupray
    from sweeps.digit_tasks import rotated_digits

    spec = short("digit_angle", tmp_path, tracked(tmp_path, "digit_angle"))
    where = ["--home", tmp_path / "home"]
    try:
        inside("sweep", spec, *where)
        inside("soup", spec, *where, "--output", tmp_path / "out")
        images, targets = zip(*rotated_digits("test", 200), strict=True)
        model = soupray.load("digit_angle:uniform", home=tmp_path / "home")
        found = model.predict(list(images))[:, 0]
        uniform = next(e for e in leaderboard(tmp_path / "out") if e["name"] == "uniform")
        mae = np.abs(found - np.array(targets)).mean()
        assert uniform["test"]["others"]["mae"] == pytest.approx(mae, rel=1e-5)
        champion = soupray.load("digit_angle@champion", home=tmp_path / "home")
        said = registered("digit_angle", tmp_path, images[7], {})
        assert said == {"angle": pytest.approx(float(champion.predict(images[7])[0, 0]), rel=1e-5)}
        card, answer = handed_over("digit_angle:uniform", tmp_path, images[7])
        assert "A regression of torch" in card
        assert "every output is within 0.175 of its target; NLL is the mean squared error" in card
        assert "pipeline_tag" not in card.split("---")[1]
        assert ast.literal_eval(answer) == {"angle": pytest.approx(float(found[7]), abs=1e-4)}
    finally:
        inside("down", *where)


def test_several_labels_from_the_sweep_to_a_table_of_predictions(tmp_path, without_ray):
    import csv
    import json

    from conftest import inside, leaderboard

    import soupray
    from sweeps.digit_tasks import NAMES, two_digits

    spec = short("two_digits", tmp_path, tracked(tmp_path, "two_digits"))
    where = ["--home", tmp_path / "home"]
    try:
        inside("sweep", spec, *where)
        shown = inside("soup", spec, *where, "--output", tmp_path / "out").stdout
        assert "Scores: samples with all labels right, in %." in " ".join(shown.split())
        entries = {e["name"]: e for e in leaderboard(tmp_path / "out")}
        uniform = entries["uniform"]
        assert set(uniform["test"]["others"]) == {"map", "micro_f1"}
        assert len(uniform["thresholds"]) == 10
        # The leaderboard's numbers from the logits of the model, by scikit-learn.
        model = soupray.load("two_digits:uniform", home=tmp_path / "home")
        images, targets = zip(*two_digits("test", 200), strict=True)
        logits = model.logits(list(images))
        truth = np.array([[name in names for name in NAMES] for names in targets])
        assert uniform["test"]["correct"] == ((logits > 0) == truth).all(axis=1).sum()
        assert uniform["test"]["others"]["map"] == pytest.approx(
            oracle.average_precision_score(truth, logits, average="macro"), abs=1e-6
        )
        assert model.predict_proba(list(images)).max() <= 1
        # With thresholds, as a table.
        images[7].save(tmp_path / "seven.png")
        inside("predict", "two_digits:uniform", tmp_path / "seven.png", *where, "--calibrated",
               "--output", tmp_path / "p.csv")  # fmt: skip
        (row,) = csv.DictReader((tmp_path / "p.csv").open())
        over = logits[7] > np.array(uniform["thresholds"])
        assert row["classes"] == "|".join(n for n, yes in zip(NAMES, over, strict=True) if yes)
        said = registered("two_digits", tmp_path, images[7], {"probabilities": True})
        champion = soupray.load("two_digits@champion", home=tmp_path / "home")
        assert said["classes"] == "|".join(champion.predict(images[7])[0])
        chances = [said[f"p({name})"] for name in NAMES]
        assert np.allclose(chances, champion.predict_proba(images[7])[0], atol=1e-6)
        card, answer = handed_over("two_digits:uniform", tmp_path, images[7])
        assert "A classifier for several labels of torch" in card
        assert "| split | samples | accuracy | 95 % interval | NLL | ECE | map | micro" in card
        assert "The thresholds with the best F1 on held-out data: zero " in card
        assert answer == str([n for n, z in zip(NAMES, logits[7], strict=True) if z > 0])
        report = inside("report", spec, *where, "--output", tmp_path / "r.html")
        assert report.returncode == 0
        page = (tmp_path / "r.html").read_text()
        assert "What each trial is worth" in page
        assert "<th>map</th>" in page
        assert f"<td>{entries['ensemble']['held_out']['others']['map']:.3f}</td>" in page
        assert "Confusion on ID test" not in page
        diagnosed = inside("diagnose", spec, *where, "--output", tmp_path / "d", "--json")
        left = json.loads(diagnosed.stdout)["left_out"]
        assert left["pairs"] == "it is for one_class; the targets here are of multi_label"
        refused = inside("soup", spec, *where, "--vrf", check=False)
        assert "vrf is for one_class; the targets of this spec are of multi_label" in refused.stderr
        best = json.loads(inside("status", spec, *where, "--json").stdout)["best"]
        assert best["metric"] == "map"
        rows = json.loads(inside("trials", spec, *where, "--json").stdout)
        assert rows[0]["score"] == best["score"] == max(row["score"] for row in rows)
        assert " map " in inside("trials", spec, *where).stdout.splitlines()[0]
    finally:
        inside("down", *where)


def test_a_trial_of_a_regression_keeps_the_epoch_with_the_smallest_error(tmp_path):
    from soupray.core.records import Basis
    from soupray.core.trials import Ingredient
    from soupray.data.cache import open_data
    from soupray.search.plan import trials_of
    from soupray.spec.sweep_spec import load
    from soupray.store.checkpoints import Checkpoints
    from soupray.store.objects import open_store
    from soupray.tasks import task_of
    from soupray.training.trial import fine_tune

    path = short("digit_angle", tmp_path, ("epochs: 1\n    batch_size: 32",
                                           "epochs: 3\n    batch_size: 20"))  # fmt: skip
    spec = load(path)
    data, task = open_data(spec, tmp_path / "data"), task_of(spec.task)
    assert data.samples(data.split("train"))[1].dtype == np.float32
    checkpoints = Checkpoints(open_store("memory://"), tmp_path / "weights")
    torch.manual_seed(0)
    init = checkpoints.save(task.init(), {"init": "own"})
    basis = Basis(key="0" * 32, splits=data.splits, init=init, anchor=init)
    training = fine_tune(trials_of(spec, basis)[0], task, data, checkpoints)
    records = []
    while True:
        try:
            records.append(next(training))
        except StopIteration as ended:
            made = ended.value
            break
    assert isinstance(made, Ingredient)
    best = max(records, key=lambda r: r.value)
    assert made.best_epoch == best.epoch
    assert best.value == pytest.approx(-made.held_out.others["mae"])
    outputs = checkpoints.load_blob(made.logits.sha256)["logits"].numpy()
    targets = np.array(data.samples(data.split("held_out"))[1])
    assert made.held_out.others["mae"] == pytest.approx(np.abs(outputs - targets).mean(), rel=1e-5)
    assert made.held_out.correct == (np.abs(outputs - targets) <= 0.175).sum()
