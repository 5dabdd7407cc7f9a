"""A leaderboard made by hand: two ingredients, two shifts, and a formula for every score."""

import msgspec
from shared import demo, ingredient, scores, sha, split

from soupray.core.candidates import Candidate, Outcome, Step, mean_of
from soupray.core.records import Basis, CheckpointRef, Rejected, Scores
from soupray.core.trials import Pool
from soupray.recipes import run_recipes
from soupray.recipes.recipe import Earlier
from soupray.recipes.wise_ft import WISE_FT
from soupray.reporting.ranking import leaderboard

N = 100
SPEC = demo()
REF = CheckpointRef(sha256="anchor", size_bytes=3000)
A, B = (ingredient(name, scores(n, N), size_bytes=2000) for name, n in (("a", 90), ("b", 80)))
POOL = Pool(init=REF, anchor=REF, ingredients=(A, B))
BASIS = Basis(
    key="k",
    splits=(
        split("train", 7, role="train"),
        split("held_out", N, role="held_out"),
        split("test", 10, role="test"),
        split("inverted", 100),
        split("noise", 200),
    ),
    init=REF,
    anchor=REF,
)


def alpha(candidate: Candidate) -> float:
    """How far it is from the anchor, 0 to 1."""
    return 1 - dict(candidate.parts).get("anchor", 0) / candidate.denominator


class Reports(dict):
    """inverted: .9 - .4 alpha of 100; noise: .5 + .1 alpha of 200; test: as told, else half."""

    def __missing__(self, key: tuple[Candidate, str]) -> Scores:
        candidate, name = key
        counts = {
            "inverted": scores(round(90 - 40 * alpha(candidate)), 100, "digest of inverted"),
            "noise": scores(round(100 + 20 * alpha(candidate)), 200, "digest of noise"),
            "test": scores([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], of="digest of test"),
        }
        return counts[name]


AB = mean_of([sha("a"), sha("b")])
REPORTED = Reports({(AB, "test"): scores([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], of="digest of test")})


class Line:
    """Held-out: .5 + .4 alpha."""

    pool = POOL

    def value(self, result):
        return result.correct / result.n

    def scores(self, candidates):
        return [scores(round(50 + 40 * alpha(c)), N) for c in candidates]


def step(right: int | None, accepted: bool) -> Step:
    result = scores(right, N) if right is not None else Rejected(seen=50, correct=40, bound=91)
    return Step(candidate=AB, result=result, accepted=accepted)


GREEDY = Outcome(
    name="greedy",
    recipe="greedy",
    options={"accept": "ge"},
    candidate=AB,
    held_out=scores([1] * 88 + [0] * 9 + [1] * 3),
    trace=(step(90, True), step(91, True), step(None, False), step(85, False)),
)


def outcomes() -> list[Outcome]:
    made = run_recipes(Line(), {name: {} for name in ("anchor", "best_single", "uniform")})
    made.append(GREEDY)
    return made + WISE_FT.run(Line(), Earlier(tuple(made), tuple(made[2:])))


OUTCOMES = outcomes()
ENTRIES = leaderboard(OUTCOMES, POOL, BASIS, REPORTED)
BY_NAME = {e.name: e for e in ENTRIES}

NO_SHIFTS = msgspec.structs.replace(BASIS, splits=BASIS.splits[:3])
