"""Many faults of the store, in one process: whatever it does, running again ends the same.

The job is a whole sweep and soup of linear models, trained, stored and evaluated by the real code.
Each seed breaks about one request in thirty, until a run gets through.
"""

import hashlib
import json
import math
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from shared import CutShort, key, small_disk, split, trial

from soupray.core.candidates import mean_of
from soupray.core.errors import AlreadyExists, CheckpointError, SouprayError, StoreUnavailable
from soupray.core.records import Basis, Setting, decode, digest, encode
from soupray.core.requests import Temperature
from soupray.core.trials import Ingredient, Manifest, Trial, key_of, pool_of
from soupray.data.cache import Data
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.operations.doctor import round_trip
from soupray.recipes import run_recipes
from soupray.search.state import find_manifests
from soupray.services.home import atomic_write
from soupray.spec.space import Space
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import Store, create_record, open_store, read_record, read_view
from soupray.testing.linear import LinearTask, make_data
from soupray.training.trial import fine_tune

SETTING = Setting(batch_size=16)
RECIPES = ("anchor", "best_single", "uniform", "greedy", "wise_ft", "ensemble", "fisher", "vrf")
FAULTS = ("refuses", "loses the answer", "answers exists", "truncates", "delays")


class Faulty(Store):
    """A store that fails at random, as its clients see it once their own retries are over."""

    def __init__(self, store: Store, seed: int, often: float = 0.03) -> None:
        super().__init__(store.backend, store.url)
        self._random, self._often = random.Random(seed), often
        self.injected: Counter[str] = Counter()

    def _fault(self, *kinds: str) -> str | None:
        if self._random.random() >= self._often:
            return None
        kind = self._random.choice(kinds)
        self.injected[kind] += 1
        if kind == "refuses":
            raise StoreUnavailable("503 Slow Down")
        if kind == "delays":  # long beside what a request to memory takes
            time.sleep(0.02)
            return None
        return kind

    def _written(self, fault: str | None, path: str) -> None:
        """After the write was done."""
        if fault == "loses the answer":
            raise StoreUnavailable("connection reset")
        if fault == "answers exists":  # a client's retry of a create that had arrived
            raise AlreadyExists(f"{path} is already there")

    def get(self, path: str) -> bytes:
        fault = self._fault("refuses", "truncates", "delays")
        data = super().get(path)
        return data[: self._random.randrange(len(data))] if fault else data

    def get_range(self, path: str, start: int, length: int) -> bytes:
        fault = self._fault("refuses", "truncates", "delays")
        data = super().get_range(path, start, length)
        return data[: self._random.randrange(len(data))] if fault else data

    def size(self, path: str) -> int:
        self._fault("refuses", "delays")
        return super().size(path)

    def list(self, prefix: str):
        self._fault("refuses", "delays")
        return super().list(prefix)

    def create(self, path: str, data: bytes) -> None:
        fault = self._fault("refuses", "loses the answer", "answers exists", "delays")
        super().create(path, data)
        self._written(fault, path)

    def put(self, path: str, data: bytes | Path) -> None:
        fault = self._fault("refuses", "loses the answer", "delays")
        super().put(path, data)
        self._written(fault, path)


def trials(init: str, data: Data) -> list[Trial]:
    rates = (1e-3, 1e-2, 3e-2, 1e-1)
    planned = [
        msgspec.structs.replace(
            trial(),
            hparams=Space(lr=lr, epochs=2, batch_size=20).model_dump(),
            seed=i,
            init=init,
            data=tuple(data.split(name).digest for name in ("train", "held_out")),
            setting=SETTING,
        )
        for i, lr in enumerate(rates)
    ]
    return [msgspec.structs.replace(one, key=key_of(one)) for one in planned]


def job(store: Store, data: Data, cache: Path) -> list[tuple]:
    """Sweep and soup, as a process of its own would: it knows nothing but what is in the store."""
    task, checkpoints = LinearTask(), Checkpoints(store, cache)
    init = checkpoints.save(task.init(), {"init": "toy"})
    basis = Basis(key="0" * 32, splits=data.splits, init=init, anchor=init)
    basis = create_record(store, f"bases/{basis.key}.json", basis)
    planned = trials(init.sha256, data)
    for one, manifest in zip(planned, find_manifests(store, planned), strict=True):
        if manifest is None:
            for _ in fine_tune(one, task, data, checkpoints):
                pass
    found = find_manifests(store, planned)
    assert all(isinstance(m, Ingredient) for m in found)
    pool = pool_of(basis, found)
    workers = LocalWorkers(task, data, checkpoints, SETTING)
    workers.cache.add(pool.ingredients)
    evaluator = StoredEvaluator(Site(workers, workers.cache, SETTING))
    held_out, train, test = (basis.split(name) for name in ("held_out", "train", "test"))
    selection = HeldOutSelection(evaluator, pool, [held_out, train])
    outcomes = run_recipes(selection, {name: {} for name in RECIPES})
    scores = evaluator.scores([o.candidate for o in outcomes], test)
    return [
        (o.name, o.candidate.digest, o.held_out, s) for o, s in zip(outcomes, scores, strict=True)
    ]


def check(store: Store) -> dict[str, bytes]:
    """Everything in the store is whole, and no record is without its bytes; the manifests."""
    manifests = {}
    paths = store.list("")
    for path in paths:
        data = store.get(path)
        if path.endswith(".safetensors"):
            assert path.startswith(("weights/", "blobs/"))
            assert layout.stem(path) == hashlib.sha256(data).hexdigest()
            continue
        record = json.loads(data)
        for ref in references(record):
            places = {layout.weights(ref["sha256"]), layout.blob(ref["sha256"])}
            (path_of,) = places & set(paths)
            assert store.size(path_of) == ref["size_bytes"]
        if path.endswith("manifest.json"):
            assert isinstance(decode(data, Manifest), Ingredient)
            manifests[path] = data
    return manifests


def references(part: object) -> list[dict]:
    if isinstance(part, dict):
        here = [part] if part.keys() == {"sha256", "size_bytes"} else []
        return here + [ref for value in part.values() for ref in references(value)]
    return [ref for value in part for ref in references(value)] if isinstance(part, list) else []


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> list[tuple]:
    store = open_store("memory://")
    board = job(store, data, tmp_path_factory.mktemp("cache"))
    assert len(board) >= len(RECIPES)
    assert len({row[1] for row in board}) > 3  # the recipes differ: equal boards mean something
    assert digest([row[1] for row in board])
    assert len(check(store)) == 4
    return board


TOTAL: Counter[str] = Counter()
SEEDS = 12


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("same_machine", [True, False])
def test_whatever_the_store_does_running_again_ends_in_the_same_leaderboard(
    seed, same_machine, undisturbed, data, tmp_path
):
    store = open_store("memory://")
    faulty = Faulty(store, seed + 1000 * same_machine)
    manifests: dict[str, bytes] = {}
    for attempt in range(200):
        cache = tmp_path / ("cache" if same_machine else str(attempt))
        try:
            board = job(faulty, data, cache)
        except SouprayError:
            board = None
        now = check(store)
        assert manifests.items() <= now.items()  # what is finished stays, and is not made again
        manifests = now
        if board is not None:
            break
    assert board == undisturbed
    assert sum(faulty.injected.values()) > 0
    TOTAL.update(faulty.injected)


def test_every_kind_of_fault_was_injected_and_many_of_them():
    assert set(TOTAL) == set(FAULTS)
    assert sum(TOTAL.values()) > 100


def test_a_store_that_answers_exists_to_a_retry_of_ours_gives_our_record_back():
    store = Faulty(open_store("memory://"), seed=0, often=0)
    store._fault = lambda *kinds: "answers exists" if "answers exists" in kinds else None
    made = create_record(store, "a.json", trial(key("a")))
    assert made == trial(key("a"))


def test_a_truncated_download_is_never_taken_for_the_weights(data, tmp_path):
    store = Faulty(open_store("memory://"), seed=0, often=0)
    ref = Checkpoints(store, tmp_path / "one").save(LinearTask().init(), {})
    store._often = 1.0
    store._fault = lambda *kinds: "truncates" if "truncates" in kinds else None
    for attempt in range(20):
        cache = tmp_path / f"c{attempt}"
        with pytest.raises(SouprayError, match="corrupt or truncated"):
            Checkpoints(store, cache).fetch(ref.sha256)
        assert list(cache.iterdir()) == []  # nothing that a later read could believe


PAGE_KB, STEP = 4, 2
"""A file takes a page at least; the disk grows by so many whenever it was full."""


def grown(disk: Path, pages: int) -> None:
    size = f"remount,size={pages * PAGE_KB}k"
    subprocess.run(["mount", "-o", size, str(disk)], check=True)


@pytest.mark.parametrize("full", ["store", "cache"])
def test_a_disk_that_is_full_again_and_again_ends_in_the_same_leaderboard(
    full, undisturbed, data, tmp_path
):
    pages, manifests, board, told = STEP, {}, None, []
    with small_disk(tmp_path / "small", f"{pages * PAGE_KB}k") as disk:
        store = open_store(f"file://{disk}" if full == "store" else "memory://")
        cache = disk if full == "cache" else tmp_path / "cache"
        while board is None:
            try:
                board = job(store, data, cache)
            except StoreUnavailable as error:
                told.append(str(error))
                pages += STEP
                grown(disk, pages)
            now = check(store)
            assert manifests.items() <= now.items()
            manifests = now
    assert board == undisturbed
    assert len(told) >= 8  # the cache needs less: it drops what it can fetch again
    assert all("space" in said.lower() for said in told)


def test_a_local_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path):
    with small_disk(tmp_path / "small", "1m") as disk:
        atomic_write(disk / "board.json", b"old")
        with pytest.raises(OSError, match="No space left"):
            atomic_write(disk / "board.json", bytes(2_000_000))
        assert (disk / "board.json").read_bytes() == b"old"
        assert [path.name for path in disk.iterdir()] == ["board.json"]


def once(kind: str, store: Store) -> Faulty:
    """A store that has one fault, at the first request that can have it."""
    faulty = Faulty(store, seed=0, often=0)
    left = [kind]
    faulty._fault = lambda *kinds: left.pop() if left and kind in kinds else None
    return faulty


def once_cut_short(store: Store) -> Faulty:
    return once("truncates", store)


def test_an_answer_that_is_cut_short_once_is_asked_for_again(tmp_path):
    store = open_store("memory://")
    store.put("a.json", encode(trial(key("a"))))
    assert read_record(once_cut_short(store), "a.json", Trial) == trial(key("a"))
    store.put("a.png", b"no digest names it")
    assert read_view(once_cut_short(store), "a.png") == b"no digest names it"
    ref = Checkpoints(store, tmp_path / "one").save(LinearTask().init(), {})
    fetched = Checkpoints(once_cut_short(store), tmp_path / "other").fetch(ref.sha256)
    assert fetched.read_bytes() == store.get(layout.weights(ref.sha256))
    assert list((tmp_path / "other").iterdir()) == [fetched]


def test_a_view_or_an_answer_that_is_always_cut_short_is_never_believed(tmp_path):
    store = open_store("memory://")
    store.put("a.png", b"1234")
    with pytest.raises(CheckpointError, match=r"a\.png .* has 4 bytes, but 2 came, twice"):
        read_view(CutShort(store, math.inf), "a.png")

    def cache(store: Store) -> EvaluationCache:
        return EvaluationCache(Checkpoints(store, tmp_path), SETTING, split("train", 9))

    asked = Temperature(candidate=mean_of(["a" * 64])), split("held_out", 10)
    assert cache(store).answer(*asked) is None
    assert cache(store).put_answer(*asked, 1.2345) == 1.2345
    assert cache(CutShort(store, 1)).answer(*asked) == 1.2345
    with pytest.raises(CheckpointError, match="cannot be read"):
        cache(CutShort(store, math.inf)).answer(*asked)  # not 1.2


def test_doctor_finds_a_store_well_that_lost_the_answer_to_its_first_write():
    store = once("answers exists", open_store("memory://"))
    assert "a second create is refused" in round_trip(store)
    assert store.list("") == []
