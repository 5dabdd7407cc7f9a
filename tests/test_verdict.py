"""What to take from a leaderboard, from numbers made by hand."""

import math

import msgspec
import numpy as np
import pytest
from board import BY_NAME, ENTRIES
from scipy.stats import norm
from shared import scores

from soupray.maths.metrics import Z, mean_paired_difference, paired_difference
from soupray.reporting.champion import Champion, cost
from soupray.reporting.ranking import Entry, Gain, measured
from soupray.reporting.verdict import front, verdict


def test_a_paired_difference_by_hand():
    """Bonett and Price: one is added to each discordant count, and two to n."""
    a, b = scores([1] * 8 + [0] * 2), scores([1] * 5 + [0] * 3 + [1] * 1 + [0] * 1)
    # only a: 3, only b: 1, n = 10
    difference, low, high = paired_difference(a, b)
    p, q = 4 / 12, 2 / 12
    half = norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / 12)
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((p - q - half, p - q + half))
    same = paired_difference(a, a)
    assert same[0] == 0
    assert same[1] == -same[2]
    assert norm.ppf(0.975) == pytest.approx(Z, abs=1e-12)


def test_the_mean_over_shifts_of_the_same_samples_is_that_of_their_means():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.3  # what is hard, is hard under each shift
    masks = [[(rng.random(400) < 0.9) & ~hard, (rng.random(400) < 0.7) & ~hard] for _ in range(3)]
    pairs = [(scores(a.tolist()), scores(b.tolist())) for a, b in masks]
    difference, low, high = mean_paired_difference(pairs)
    together = np.mean([a.astype(float) - b.astype(float) for a, b in masks], axis=0)
    assert difference == pytest.approx(together.mean())
    half = Z * together.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((difference - half, difference + half))


def test_the_mean_over_shifts_of_other_samples_has_the_error_of_independent_ones():
    a, b = scores(60, 100), scores(50, 100)
    c, d = scores(20, 50), scores(20, 50)
    difference, low, high = mean_paired_difference([(a, b), (c, d)])
    assert difference == pytest.approx((0.10 + 0.0) / 2)
    error = math.sqrt((0.1 - 0.01) / 100 + 0) / 2  # 10 of 100 differ, none of 50
    assert (low, high) == pytest.approx((difference - Z * error, difference + Z * error))


def board(**changes: dict) -> list[Entry]:
    """The entries of `board.py`, some of them changed, in their order."""
    return [msgspec.structs.replace(e, **changes.get(e.name, {})) for e in ENTRIES]


def taken(name: str, first: str | None = None) -> Champion:
    return Champion(name=name, first=first or name, equals=(name,), samples=100)


def said(entries: list[Entry], champion: Champion, metric="accuracy") -> str:
    return "\n".join(verdict(entries, champion, "digits", metric).lines)


def test_a_soup_that_helps_is_said_with_what_it_gains_and_costs():
    gains = {
        "test_gain": Gain(difference=0.2, low=-0.1, high=0.5),
        "shift_gain": Gain(difference=0.05, low=0.01, high=0.09),
        "shift_mean": 0.7321,
    }
    entries = board(greedy=gains)
    made = verdict(entries, taken("greedy"), "digits", "accuracy")
    text = "\n".join(made.lines)
    assert text.startswith("Take greedy (digits@champion), one model of 2 checkpoints.\n")
    assert (
        "On ID test it has 70.0 %, 20.0 points more than the best single model ([-10.0, +50.0], "
        "which may be chance, p = 0.62); under shift 73.2 %, 5.0 points more than the best single "
        "model ([+1.0, +9.0], more than chance)."
    ) in text
    assert "It costs the same at inference as one model." in text
    assert "soupray predict digits@champion INPUT..." in text
    assert made.helps
    assert made.test_gain == gains["test_gain"]
    assert len(made.lines) <= 5


def test_a_choice_that_does_not_hold_on_test_is_said():
    worse = Gain(difference=-0.1, low=-0.2, high=-0.01)
    assert "The samples that chose it promised more" in said(
        board(greedy={"test_gain": worse}), taken("greedy")
    )
    maybe = Gain(difference=-0.1, low=-0.2, high=0.01)
    assert "promised more" not in said(board(greedy={"test_gain": maybe}), taken("greedy"))


def test_what_costs_more_is_said():
    entries = board(greedy={"forward_passes_per_sample": 4, "size_bytes": 13_400_000})
    text = said(entries, taken("greedy"))
    assert "4 models whose outputs are joined" in text
    assert (
        "It costs 4 forward passes a sample instead of 1, and 13.4 MB of models instead of 0.0."
        in text
    )


def test_where_no_soup_is_taken_it_says_why():
    behind = said(ENTRIES, taken("best_single"))
    assert "Take best_single (digits@champion), the best single model." in behind
    # greedy has 91 of 100, best_single 90
    assert (
        "On the 100 samples that rank, no soup is better than chance tells: greedy is 1.0 points "
        "ahead, and costs more"
    ) in behind
    worse = BY_NAME["greedy"].held_out
    low = msgspec.structs.replace(worse, accuracy=0.5, correct=50, low=0.4, high=0.6)
    singles = [e for e in board(uniform={"held_out": low}) if e.name in ("best_single", "uniform")]
    text = said(singles, taken("best_single"))
    assert "the best one, uniform, is 40.0 points behind" in text
    assert "The mean of all trials has 50.0 %: the weights do not average well" in text
    alone = [e for e in ENTRIES if e.name == "best_single"]
    assert "No recipe made one of several models" in said(alone, taken("best_single"))


@pytest.mark.parametrize(
    ("right", "said_so"),
    [
        (9_000, "the best one, uniform, is equal"),
        (8_999, "the best one, uniform, is less than 0.1 points behind"),
    ],
)
def test_a_distance_is_never_said_to_be_0(right: int, said_so: str):
    def of(count: int) -> dict:
        return {"held_out": measured(scores([1] * count + [0] * (10_000 - count)))}

    entries = board(uniform=of(right), best_single=of(9_000))
    both = [e for e in entries if e.name in ("best_single", "uniform")]
    text = said(both, taken("best_single"))
    assert said_so in text
    assert "0.0 points" not in text


def test_a_held_out_accuracy_of_100_percent_is_not_certain():
    """Its standard error is 0. One error more of 100 is no sign of weights that do not average."""
    whole, one = (measured(scores([1] * n + [0] * (100 - n))) for n in (100, 99))
    entries = board(best_single={"held_out": whole}, uniform={"held_out": one})
    both = [e for e in entries if e.name in ("best_single", "uniform")]
    assert "do not average" not in said(both, taken("best_single"))


def test_what_gains_most_under_shift_is_named_where_no_soup_is_taken():
    gains = {
        "test_gain": Gain(difference=0.0, low=-0.02, high=0.02),
        "shift_gain": Gain(difference=0.2, low=0.1, high=0.3),
        "shift_mean": 0.85,
    }
    text = said(board(uniform=gains), taken("best_single"))
    assert (
        "look at uniform: under shift it has 85.0 %, 20.0 points more than the best single model "
        "([+10.0, +30.0], more than chance); on ID test 70.0 %, 0.0 points more"
    ) in text
    chance = gains | {"shift_gain": Gain(difference=0.2, low=-0.1, high=0.5)}
    assert "look at uniform" not in said(board(uniform=chance), taken("best_single"))


def test_one_checkpoint_is_said_as_what_it_is():
    start = BY_NAME["zero_shot"].ingredients
    anchor = said(board(uniform={"ingredients": start}), taken("uniform"))
    assert "the model from which all trials start, as uniform uses it" in anchor
    single = BY_NAME["best_single"]
    same = {"ingredients": single.ingredients, "candidate": single.candidate}
    assert "(digits@champion), the best single model." in said(board(greedy=same), taken("greedy"))
    outputs = {"ingredients": single.ingredients, "recipe": "vrf"}
    text = said(board(greedy=outputs), taken("greedy"))
    assert "the best single model, as vrf uses it." in text


def test_the_front_does_not_repeat_the_numbers_of_what_is_taken():
    single = BY_NAME["best_single"]
    same = {
        name: getattr(single, name)
        for name in ("held_out", "shift_mean", "forward_passes_per_sample", "size_bytes")
    }
    made = verdict(board(greedy=same), taken("best_single"), "digits", "accuracy")
    assert "greedy" not in made.front
    assert "best_single" not in made.front


def test_an_entry_that_ranks_first_but_is_not_taken_is_named():
    text = said(ENTRIES, taken("best_single", first="greedy"))
    assert "greedy ranks first, but 100 samples cannot tell the two apart" in text
    assert "and this one is one model whose outputs are not mixed" in text  # at the same cost
    dear = board(greedy={"forward_passes_per_sample": 2})
    assert "and this one is cheaper" in said(dear, taken("best_single", first="greedy"))


def test_the_front_has_what_nothing_beats_on_everything():
    def entry(name: str, held_out: int, shifts: float, passes: int, size: int) -> Entry:
        score = msgspec.structs.replace(BY_NAME["greedy"].held_out, accuracy=held_out / 100)
        return msgspec.structs.replace(
            BY_NAME["greedy"], name=name, candidate=name, held_out=score, shift_mean=shifts,
            forward_passes_per_sample=passes, size_bytes=size,
        )  # fmt: skip

    entries = [
        entry("a", 95, 0.70, 1, 100),
        entry("beaten by a", 94, 0.70, 1, 100),
        entry("robust", 90, 0.80, 1, 100),
        entry("costly", 96, 0.85, 4, 400),
        entry("beaten by costly", 96, 0.85, 5, 400),
        entry("small", 80, 0.60, 1, 10),
    ]
    twin = msgspec.structs.replace(entries[0], name="twin of a")
    assert [e.name for e in front([*entries, twin], "accuracy")] == [
        "a", "robust", "costly", "small"
    ]  # fmt: skip


def test_bytes_of_headers_cost_nothing():
    one, other = (msgspec.structs.replace(ENTRIES[0], size_bytes=n) for n in (3_358_832, 3_358_901))
    assert cost(one) == cost(other)
    assert cost(one) < cost(msgspec.structs.replace(one, size_bytes=6_700_000))


def test_an_old_leaderboard_has_a_verdict_without_gains():
    old = board(greedy={"test_gain": msgspec.UNSET, "shift_gain": msgspec.UNSET})
    made = verdict(old, taken("greedy"), "digits", "accuracy")
    assert made.test_gain is None
    assert "On ID test it has 70.0 %; under shift" in "\n".join(made.lines)


def test_with_nll_the_distance_is_in_nats():
    better = msgspec.structs.replace(BY_NAME["best_single"].held_out, nll=0.25)
    nll = BY_NAME["greedy"].held_out.nll
    text = said(board(best_single={"held_out": better}), taken("best_single"), metric="nll")
    assert f"is {nll - 0.25:.3f} nats behind" in text
