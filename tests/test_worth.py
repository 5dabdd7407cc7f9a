"""What a trial is worth: by hand, by brute force, and on the store of `tests/stores`."""

import itertools
import json

import numpy as np
import pytest
from msgspec import UNSET, structs
from shared import Old, unpacked

from soupray.core.errors import NotFound
from soupray.core.records import Objective
from soupray.maths import worth
from soupray.maths.metrics import nll, sample_losses
from soupray.operations.worth import Estimate, find_worth, verdict_of
from soupray.search.state import find_state
from soupray.spec.sweep_spec import load
from soupray.store import layout

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 4, 30)
SIX = [RNG.normal(size=(30, 4)).astype(np.float32) for _ in range(6)]


def losses(outputs: np.ndarray) -> np.ndarray:
    return sample_losses(outputs, LABELS, UNSET)


def test_three_models_by_hand():
    """Outputs 0, 3, 6 and the target 3: alone they lose 9, 0, 9, so that none at all loses 6.

    Pairs lose 2.25 (0 and 3), 0 (0 and 6), 2.25 (3 and 6); all three 0. The second one gains, in
    the six orders, 6.75, 0, 6, 6, 0 and 6.75. Leave-one-out says that it is worth nothing.
    """
    outputs = [np.array([[x]], np.float32) for x in (0, 3, 6)]

    def squared(of: np.ndarray) -> np.ndarray:
        return ((of - 3) ** 2).mean(axis=1)

    found = worth.shapley(outputs, squared, 0)
    assert found.values[:, 0] == pytest.approx([0.875, 4.25, 0.875])
    assert (found.orders, found.order_errors.tolist()) == (0, [0, 0, 0])
    left_out = worth.leave_one_out(3, lambda k: outputs[k], squared)
    assert np.concatenate(left_out) == pytest.approx([2.25, 0, 2.25])


def test_all_subsets_are_all_orders_sample_by_sample():
    alone = np.mean([losses(one.astype(float)) for one in SIX], axis=0)
    expected = np.zeros((6, 30))
    for order in itertools.permutations(range(6)):
        before = alone
        for size in range(1, 7):
            now = losses(np.mean([SIX[k] for k in order[:size]], axis=0, dtype=float))
            expected[order[size - 1]] += (before - now) / 720
            before = now
    assert np.allclose(worth.shapley(SIX, losses, 0).values, expected, atol=1e-12)


def test_sampled_orders_are_near_and_say_how_near_and_sum_to_the_same(monkeypatch):
    exact = worth.shapley(SIX, losses, 0)
    monkeypatch.setattr(worth, "EXACT", 5)
    found = worth.shapley(SIX, losses, 0)
    assert found.orders == worth.MOST
    off = found.values.mean(axis=1) - exact.values.mean(axis=1)
    assert (np.abs(off) < 4 * found.order_errors).all()
    assert (found.order_errors > 0).all()
    gain = np.mean([losses(one.astype(float)) for one in SIX], axis=0) - losses(
        np.mean(SIX, axis=0, dtype=float)
    )
    assert np.allclose(found.values.sum(axis=0), gain)  # the efficiency property
    assert np.allclose(exact.values.sum(axis=0), gain)
    assert (worth.shapley(SIX, losses, 0).values == found.values).all()
    monkeypatch.setattr(worth, "WORK", 1)
    few = worth.shapley(SIX, losses, 0)
    assert few.orders == worth.FEWEST
    assert few.order_errors.mean() > 4 * found.order_errors.mean()  # 64 times the orders: 8 times


def test_a_copy_has_the_same_value_and_a_model_alone_gains_nothing():
    found = worth.shapley([SIX[0], SIX[1], SIX[0]], losses, 0).values
    assert found[0] == pytest.approx(found[2])
    assert not worth.shapley(SIX[:1], losses, 0).values.any()


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    return unpacked(tmp_path_factory.mktemp("worth"))


def why(old: Old, trial: object, name: str = "one") -> dict:
    return json.loads(old.run("why", name, trial, "--json").stdout)


def test_the_values_of_all_trials_of_a_sweep(old, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nothing may be evaluated
    made = find_state(old.store, load(old.spec("one"))).complete
    found = [why(old, i.trial.key) for i in made]
    rows = {e["name"]: e for e in json.loads(old.run("rank", "one", "--json").stdout)["entries"]}
    gain = found[0]["alone"] - found[0]["ensemble"]
    assert sum(one["shapley"]["value"] for one in found) == pytest.approx(gain)
    assert found[0]["ensemble"] == pytest.approx(rows["ensemble"]["held_out"]["nll"], abs=1e-5)
    assert found[0]["alone"] == pytest.approx(np.mean([i.held_out.nll for i in made]))
    for what in ("shapley", "leave_one_out"):
        ordered = sorted(found, key=lambda one: one[what]["place"])
        values = [one[what]["value"] for one in ordered]
        assert values == sorted(values, reverse=True)
    best = min(found, key=lambda one: one["place"])
    assert best["trial"]["key"] == rows["best_single"]["ingredients"][0]
    assert best["trial"]["coefficients"]["best_single"] == 1


def test_it_is_read_by_a_person(old):
    said = old.run("why", "one", 0).stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "from all 16 sets of trials" in said
    assert "Keep it: the entries" in said


def test_an_entry_and_a_trial_without_a_model_are_refused_by_name(old):
    assert "one has no trial 'greedy'" in old.run("why", "one", "greedy", check=False).stderr
    stopped = sorted(find_state(old.store, load(old.spec("two"))).stopped)[0]
    said = old.run("why", "two", stopped, check=False).stderr
    assert f"trial {stopped} of two is stopped: it has no model" in said


def test_logits_that_are_gone_are_named(tmp_path):
    old = unpacked(tmp_path)
    spec = load(old.spec("one"))
    first = find_state(old.store, spec).complete[0]
    old.store.delete(layout.blob(first.logits.sha256))
    old.store.delete(layout.weights(first.logits.sha256))
    with pytest.raises(NotFound, match=f"trial {first.trial.key}: .* held-out logits. Restore"):
        find_worth(spec, tmp_path / "home", first.trial.key)


def test_the_answer_follows_from_the_numbers(old):
    spec = load(old.spec("one"))
    made = find_worth(spec, old.folder / "home", "0")

    def answer(value: float, coefficients: dict, **other: object) -> str:
        trial = structs.replace(made.trial, coefficients=coefficients)
        one = Estimate(value=value, standard_error=0.01, place=1)
        return verdict_of(structs.replace(made, trial=trial, leave_one_out=one, **other))

    clear = "the ensemble of all 4 is {} without it by more than chance (NLL {} ± 0.01)"
    unclear = "held-out samples do not show whether the ensemble of all 4 needs it"
    assert (
        answer(0.03, {})
        == f"Keep it: no entry is made of it, but {clear.format('worse', '+0.03')}."
    )
    assert answer(-0.03, {}) == (
        "It need not be kept: no entry is made of it, and " + clear.format("better", "-0.03") + "."
    )
    assert unclear in answer(0.019, {"uniform": 0.0})
    assert answer(0.019, {}).startswith("It need not be kept")
    assert answer(0.019, {}, entries=0).startswith("Keep it until `soupray soup` has chosen")
    assert answer(-0.03, {"a": 0.5, "b": None}, champion="b").startswith(
        "Keep it: the entries b and 1 more need it, and the ensemble"
    )
    assert answer(-0.03, {"a": 0.5}, champion=None).startswith("Keep it: the entry a needs it")
    assert "; its copies are k1" in answer(0.0, {}, copies=("k1",))
    assert "only finished trial" in answer(0.0, {}, trials=1)


def test_the_mean_of_sample_losses_is_the_loss():
    targets = RNG.integers(0, 2, (30, 4))
    assert losses(SIX[0]).mean() == pytest.approx(nll(SIX[0], LABELS, UNSET))
    for kind in ("multi_label", "regression", "segmentation"):
        one = Objective(kind=kind)
        assert sample_losses(SIX[0], targets, one).mean() == pytest.approx(
            nll(SIX[0], targets, one)
        )
