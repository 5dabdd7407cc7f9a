"""Searches for soups: random, TPE, a stop rule and generations, paired by seed.

    python benchmarks/searches.py DATA SEEDS FILE   # goes on from there
    python benchmarks/searches.py report FILE       # the tables of the report

DATA: digits, fashion_mnist or wordnet_topics; `make fashion` and `make wordnet` fetch the last two.
The protocol is docs/decisions/0025-study-of-searches.md. Trials run in this process, without Ray.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from scipy.stats import t as student

from soupray.core.candidates import WeightCandidate
from soupray.core.records import Basis, Predictions
from soupray.core.trials import Ingredient, Trial, key_of, pool_of
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.metrics import nll
from soupray.maths.prefixes import chance_of_gain, greedy_ensemble
from soupray.recipes import run_recipes
from soupray.search.plan import as_trials, dimensions_of, planned_at, random_points, trials_of
from soupray.search.state import basis_key
from soupray.search.tpe import TpeSearch
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.training.trial import fine_tune
from soupray.training.worker import WorkerContext, make_basis, worker_context

ROOT = Path(__file__).parent.parent
TRIALS, GENERATION = 24, 8
SIZES = (6, 12, 18, 24)
RULES = ((0.001, 0.05), (0.001, 0.1), (0.005, 0.1))
AFTER = 6
FIRST = 4
"""Seeds of digits in the first run: the second run asks its question of the others alone."""

MARGIN_NLL, MARGIN_SHIFT = 0.002, 0.005


SMALLER = {
    "digits": {
        "held_out: 500": "held_out: 300",
        "epochs: {integer: [5, 15]}": "epochs: {integer: [3, 9]}",
    },
    "fashion_mnist": {
        "train: 10000": "train: 3000",
        "held_out: 2600": "held_out: 600",
        "epochs: {integer: [4, 8]}": "epochs: {integer: [2, 5]}",
    },
    "wordnet_topics": {
        "held_out: 350": "held_out: 140",
        "max_tokens: 24": "max_tokens: 16",
        "epochs: {integer: [2, 3]}": "epochs: {integer: [1, 3]}",
        "trials: 6": "trials: 16",
    },
}
"""What makes the spec of each data set small enough for ten seeds."""


TESTS = 2000
"""Images of ID test of Fashion-MNIST; five shifts are made of each."""

THIRD = 3
"""WordNet's train file is cut to one of so many definitions, the same share of each topic."""


def few_tests(source: Path, folder: Path) -> None:
    """Write IDX files whose test part is the first TESTS images of those of `source`."""
    folder.mkdir(exist_ok=True)
    for file in source.glob("*-ubyte.gz"):
        data = gzip.decompress(file.read_bytes())
        if file.name.startswith("t10k"):
            dimensions = data[3]
            start, shape = 4 + 4 * dimensions, np.frombuffer(data, ">u4", dimensions, 4)
            size = int(np.prod(shape[1:], dtype=int))
            count = np.array(TESTS, ">u4").tobytes()
            data = data[:4] + count + data[8 : start + TESTS * size]
        (folder / file.name).write_bytes(gzip.compress(data, 1))


def few_texts(source: Path, folder: Path) -> None:
    """Copy WordNet's tables; of the train file, each third row."""
    folder.mkdir(exist_ok=True)
    for file in source.glob("*.csv"):
        head, *rows = file.read_text().splitlines(keepends=True)
        kept = rows[::THIRD] if file.stem == "train" else rows
        (folder / file.name).write_text("".join([head, *kept]))


def spec_of(data: str, seed: int, folder: str, sampler: str) -> SweepSpec:
    """The spec of a data set, made small, with N trials and a store in `folder`."""
    text = (ROOT / "sweeps" / f"{data}.yaml").read_text()
    if data == "fashion_mnist":
        here = ("/usr/share/datasets/fashion-mnist", str(ROOT / ".home" / "fashion-mnist"))
        source = next(path for path in map(Path, here) if path.exists())
        few_tests(source, Path(folder, "images"))
        text = text.replace(here[0], f"{folder}/images")
    if data == "wordnet_topics":
        few_texts(ROOT / ".home/wordnet/topics", Path(folder, "texts"))
        text = text.replace(".home/wordnet/topics", f"{folder}/texts")
    edits = SMALLER[data] | {
        "seed: 0": f"seed: {seed}",
        "trials: 16": f"trials: {TRIALS}",
        "sampler: random": f"sampler: {sampler}",
        "storage: embedded": f"storage: file://{folder}/store",
        "tracking: embedded": "tracking: off",
    }
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    return parse(text, f"{data}.yaml")


def trained(here: WorkerContext, trial: Trial) -> Ingredient | None:
    """Train a trial, or find it in the store; None: it diverged."""
    training = fine_tune(trial, here.task, here.data, here.checkpoints)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value if isinstance(end.value, Ingredient) else None


class World:
    """A sweep in this process: what its trials are worth together."""

    def __init__(self, spec: SweepSpec, folder: str) -> None:
        Path(folder, "store").mkdir(exist_ok=True)
        self.place = Place(storage=spec.storage, credentials=None, cache=f"{folder}/cache")
        self.basis: Basis = make_basis(spec, self.place, basis_key(spec))
        self.here = worker_context(spec, self.place)
        self.spec = spec
        self.evaluator: StoredEvaluator = self.here.evaluator()

    def predictions(self, one: Ingredient) -> Predictions:
        """The stored held-out logits of a trial."""
        workers = self.here.workers()
        return workers.cache.predictions(one.logits, self.basis.split("held_out"))

    def soups(self, pool: Sequence[Ingredient]) -> dict[str, WeightCandidate]:
        """The uniform and the greedy soup of some ingredients."""
        splits = [self.basis.split("held_out"), self.basis.split("train")]
        selection = HeldOutSelection(self.evaluator, pool_of(self.basis, list(pool)), splits)
        names = ("anchor", "best_single", "uniform", "greedy")
        found = {o.name: o.candidate for o in run_recipes(selection, {n: {} for n in names})}
        return {name: found[name] for name in ("best_single", "uniform", "greedy")}

    def rows(self, arm: str, size: int, pool: Sequence[Ingredient]) -> Iterator[dict[str, object]]:
        """What the soups of some ingredients are worth on all splits."""
        epochs = sum(len(one.history) for one in pool)
        for name, model in self.soups(pool).items():
            held_out, test, *shifts = (
                self.evaluator.scores([model], split)[0]
                for split in (self.basis.split("held_out"), *self.basis.reported)
            )
            yield {
                "arm": arm,
                "size": size,
                "model": name,
                "epochs": epochs,
                "held_out_nll": held_out.nll,
                "held_out": held_out.accuracy,
                "test_nll": test.nll,
                "test": test.accuracy,
                "shifts": float(np.mean([one.accuracy for one in shifts])),
            }


def stopped_at(world: World, pool: Sequence[Ingredient], gain: float, probability: float) -> int:
    """Where the stop rule ends a sweep with these trials; all of them if it does not."""
    held_out = world.basis.split("held_out")
    stored = [world.predictions(one) for one in pool]
    labels = stored[0].labels
    for size in range(AFTER, len(pool)):
        chance = chance_of_gain(
            size,
            lambda k: stored[k].logits,
            lambda logits: nll(logits, labels, held_out.objective),
            gain,
        )
        if chance < probability:
            return size
    return len(pool)


def soup_points(world: World) -> Iterator[list[Ingredient]]:
    """Trials that are proposed for what they would add to the ensemble of those before them.

    After AFTER random trials, a Gaussian process of the gains of the finished ones (leave-one-out,
    in held-out NLL of the greedy ensemble) gives the expected improvement at 512 random points.
    Every third trial stays random.
    """
    names = dimensions_of(world.spec)
    random = random_points(world.spec.seed, TRIALS, len(names))
    draw = np.random.default_rng(world.spec.seed)
    pool: list[Ingredient] = []
    known: list[tuple[list[float], Predictions]] = []
    for index in range(TRIALS):
        point = random[index]
        if len(known) >= AFTER and index % 3:
            point = proposed(known, draw.random((512, len(names))))
        (trial,) = as_trials(world.spec, world.basis, [planned_at(world.spec, index, point)])
        made = trained(world.here, trial)
        if made is not None:
            pool.append(made)
            known.append((point, world.predictions(made)))
        yield pool


def proposed(known: list[tuple[list[float], Predictions]], candidates: np.ndarray) -> list[float]:
    """The candidate with the largest expected improvement of the gain."""
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    points, logits = [point for point, _ in known], [one.logits for _, one in known]
    first = known[0][1]
    loss = lambda mean: nll(mean, first.labels, first.split.objective)  # noqa: E731
    order = sorted(range(len(logits)), key=lambda k: loss(logits[k].astype(float)))
    gains = []
    for k in range(len(logits)):
        others = greedy_ensemble(lambda j: logits[j], loss, [j for j in order if j != k])
        total = sum(logits[j].astype(float) for j in others)
        gains.append(loss(total / len(others)) - loss((total + logits[k]) / (len(others) + 1)))
    y = np.array(gains)
    y = (y - y.mean()) / (y.std() or 1.0)
    kernel = ConstantKernel() * Matern(np.ones(len(points[0])), nu=2.5) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, random_state=0).fit(np.array(points), y)
    mean, spread = model.predict(candidates, return_std=True)
    z = (mean - y.max()) / np.maximum(spread, 1e-9)
    improvement = (mean - y.max()) * norm.cdf(z) + spread * norm.pdf(z)
    return candidates[int(improvement.argmax())].tolist()


def measured_soup(data: str, seed: int) -> Iterator[dict[str, object]]:
    """The arm `soup` of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(spec_of(data, seed, folder, "random"), folder)
        for size, pool in enumerate(soup_points(world), 1):
            if size in SIZES:
                yield from world.rows("soup", size, pool)


def measured_control(data: str, seed: int) -> Iterator[dict[str, object]]:
    """The arms `generations` and `control` of one seed: the confirmatory question, asked first."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(spec_of(data, seed, folder, "random"), folder)
        plan = trials_of(world.spec, world.basis)
        first = [trained(world.here, trial) for trial in plan[:GENERATION]]
        yield from generations(world, plan, present(first))


def measured(data: str, seed: int) -> Iterator[dict[str, object]]:
    """The arms `random`, `stop` and `tpe` of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(spec_of(data, seed, folder, "random"), folder)
        plan = trials_of(world.spec, world.basis)
        pool = [trained(world.here, trial) for trial in plan]
        for size in SIZES:
            yield from world.rows("random", size, present(pool[:size]))
        for gain, probability in RULES:
            size = stopped_at(world, present(pool), gain, probability)
            arm = f"stop {gain:g}, {probability:g}"
            yield from world.rows(arm, size, present(pool)[:size])
    with tempfile.TemporaryDirectory() as folder:
        world = World(spec_of(data, seed, folder, "tpe"), folder)
        search, pool = TpeSearch(world.here.checkpoints.store, world.spec, world.basis), []
        while (trial := search.next()) is not None:
            pool.append(trained(world.here, trial))
            search.over(trial.key)
            if len(pool) in SIZES:
                yield from world.rows("tpe", len(pool), present(pool))


def generations(
    world: World, plan: Sequence[Trial], first: Sequence[Ingredient]
) -> Iterator[dict[str, object]]:
    """Trials from the uniform soup of others, and as many from theta_0 with twice the epochs."""
    soup = world.soups(first)["uniform"]
    start = world.evaluator.save(soup).sha256
    later = plan[GENERATION : 2 * GENERATION]
    second = [again(trial, init=start) for trial in later]
    pool = present([trained(world.here, trial) for trial in second])
    yield from world.rows("generations", 2 * GENERATION, pool)
    longer = [
        again(trial, hparams=trial.hparams | {"epochs": 2 * int(trial.hparams["epochs"])})
        for trial in later
    ]
    pool = present([trained(world.here, trial) for trial in longer])
    yield from world.rows("control", 2 * GENERATION, pool)


def again(trial: Trial, **edits: object) -> Trial:
    """The trial with other fields, under the key that follows from them."""
    edited = msgspec.structs.replace(trial, **edits)
    return msgspec.structs.replace(edited, key=key_of(edited))


def present(pool: Sequence[Ingredient | None]) -> list[Ingredient]:
    """Those that did not diverge."""
    return [one for one in pool if one is not None]


def main() -> None:
    what, *seeds, file = sys.argv[1:]
    rows = Path(file).read_text().splitlines() if Path(file).exists() else []
    done = [json.loads(line) for line in rows]
    if what == "report":
        report(done)
        return
    known = {(row["seed"], row["arm"]) for row in done}
    studies = {"random": measured, "soup": measured_soup, "control": measured_control}
    asked = [(seed, arm) for seed in range(int(seeds[0])) for arm in ("random", "soup")]
    asked += [(seed, "control") for seed in range(int(seeds[0]))]
    for seed, arm in asked:
        if (seed, arm) not in known:
            made = [json.dumps({"seed": seed, **row}) for row in studies[arm](what, seed)]
            with Path(file).open("a") as out:
                out.write("\n".join(made) + "\n")
            print(f"seed {seed}: {arm} is done", flush=True)


def report(rows: list[dict]) -> None:
    """Means, and differences to `random` at N, paired by seed, with 95 % intervals."""
    seeds = sorted({row["seed"] for row in rows})
    print(f"{len(seeds)} seeds.\n")
    for model in ("greedy", "uniform"):
        of = {(r["arm"], r["size"], r["seed"]): r for r in rows if r["model"] == model}
        arms = list(
            dict.fromkeys((r["arm"], "" if "stop" in r["arm"] else r["size"]) for r in rows)
        )
        print(f"## The {model} soup\n")
        print(
            "| arm | trials | epochs | held-out NLL | test NLL | test % | shifts % "
            "| Δ test NLL | Δ test | Δ shifts | verdict |"
        )
        print("|---" * 11 + "|")
        for arm, size in arms:
            mine = [r for (a, s, k), r in of.items()
                    if a == arm and size in ("", s) and ("random", TRIALS, k) in of]  # fmt: skip
            if not mine:
                continue
            base = [of["random", TRIALS, r["seed"]] for r in mine]
            mean = {n: np.mean([r[n] for r in mine]) for n in mine[0] if n not in ("arm", "model")}
            gaps = {n: interval([a[n] - b[n] for a, b in zip(mine, base, strict=True)])
                    for n in ("test_nll", "test", "shifts")}  # fmt: skip
            print(
                f"| {arm} | {mean['size']:.1f} | {mean['epochs']:.0f} | {mean['held_out_nll']:.4f} "
                f"| {mean['test_nll']:.4f} | {100 * mean['test']:.2f} | {100 * mean['shifts']:.2f} "
                f"| {shown(gaps['test_nll'], 1, 4)} | {shown(gaps['test'], 100, 2)} "
                f"| {shown(gaps['shifts'], 100, 2)} | {verdict(gaps)} |"
            )
        for asked, of_these in (("all seeds", seeds), (f"seeds from {FIRST} on", seeds[FIRST:])):
            pairs = [(of["generations", 16, k], of["control", 16, k]) for k in of_these
                     if ("control", 16, k) in of]  # fmt: skip
            print(f"\nGenerations minus their control, paired by seed, {asked} (n = {len(pairs)}):")
            for name, scale, digits in (("test_nll", 1, 4), ("test", 100, 2), ("shifts", 100, 2)):
                gap = interval([a[name] - b[name] for a, b in pairs])
                print(f"- {name}: {shown(gap, scale, digits)}")
        print()


def interval(gaps: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and half the width of its 95 % interval (Student's t)."""
    n = len(gaps)
    half = student.ppf(0.975, n - 1) * np.std(gaps, ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return float(np.mean(gaps)), float(half)


def shown(gap: tuple[float, float], scale: float, digits: int) -> str:
    """A difference with its interval."""
    return f"{scale * gap[0]:+.{digits}f} ± {scale * gap[1]:.{digits}f}"


def verdict(gaps: dict[str, tuple[float, float]]) -> str:
    """As the protocol says."""
    loss, shift = gaps["test_nll"], gaps["shifts"]
    if loss[0] + loss[1] < MARGIN_NLL and shift[0] - shift[1] > -MARGIN_SHIFT:
        return "wins"
    if loss[0] - loss[1] > MARGIN_NLL or shift[0] + shift[1] < -MARGIN_SHIFT:
        return "loses"
    return "undecided"


if __name__ == "__main__":
    main()
