"""Checkpoints: named by their content, verified when read, and never a pickle."""

import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared import ingredient, key, scores, small_disk, trial

from soupray.core.errors import CheckpointError, ChecksumMismatch, NotFound, StoreUnavailable
from soupray.core.records import encode
from soupray.core.trials import Ingredient, Manifest, Tombstone
from soupray.store import layout
from soupray.store.checkpoints import AHEAD, Checkpoints
from soupray.store.objects import create_record, find_record, open_store, read_record
from soupray.store.weights_file import MappedWeights, sha256_of, tensor_digests, write_weights
from soupray.tasks.foreign import load_foreign

WEIGHTS = {
    "w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
}
ABOUT = {"init": "zero_shot", "sweep": "s", "a": "1", "z": "2"}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(open_store("memory://"), tmp_path / "cache")


@pytest.fixture
def elsewhere(checkpoints, tmp_path) -> Checkpoints:
    """The same store, seen from a machine that has nothing yet."""
    return Checkpoints(checkpoints.store, tmp_path / "elsewhere")


def test_equal_weights_have_equal_digests_in_every_process(tmp_path):
    write_weights(tmp_path / "first", WEIGHTS, ABOUT)
    backwards = {n: WEIGHTS[n].clone() for n in reversed(WEIGHTS)}
    write_weights(tmp_path / "second", backwards, dict(reversed(ABOUT.items())))
    script = (
        "import pathlib, sys, torch;"
        "from soupray.store.weights_file import MappedWeights, sha256_of, write_weights;"
        "weights = {'steps': torch.tensor(7), 'w': torch.arange(6.).reshape(2, 3),"
        "'b': torch.tensor([.5, -1], dtype=torch.bfloat16)}; path = pathlib.Path(sys.argv[1]);"
        "write_weights(path, weights, {'z': '2', 'a': '1', 'sweep': 's', 'init': 'zero_shot'});"
        "print(sha256_of(path))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "third")]
    third = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert sha256_of(tmp_path / "first") == sha256_of(tmp_path / "second") == third


def test_other_weights_or_another_origin_have_another_digest(checkpoints):
    refs = [
        checkpoints.save(WEIGHTS, ABOUT),
        checkpoints.save(WEIGHTS | {"steps": torch.tensor(8)}, ABOUT),
        checkpoints.save(WEIGHTS, ABOUT | {"init": "other"}),
    ]
    assert len({r.sha256 for r in refs}) == 3


def test_what_is_saved_is_what_another_machine_loads(checkpoints, elsewhere):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    assert checkpoints.save(WEIGHTS, ABOUT) == ref
    assert checkpoints.store.list("weights") == [layout.weights(ref.sha256)]
    stored = checkpoints.store.get(layout.weights(ref.sha256))
    assert hashlib.sha256(stored).hexdigest() == ref.sha256
    assert len(stored) == ref.size_bytes
    loaded = elsewhere.load(ref.sha256)
    assert loaded.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert elsewhere.open(ref.sha256).names == ("b", "steps", "w")


def test_a_view_of_a_larger_tensor_is_saved_without_the_rest(checkpoints):
    ref = checkpoints.save({"row": torch.zeros(1000, 4).t()[0]}, {})
    assert ref.size_bytes < 4000 + 200


def test_a_local_copy_needs_no_store(checkpoints, elsewhere):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    elsewhere.fetch(ref.sha256)
    checkpoints.store.delete(layout.weights(ref.sha256))
    assert sha256_of(elsewhere.fetch(ref.sha256)) == ref.sha256
    assert sha256_of(checkpoints.fetch(ref.sha256)) == ref.sha256


def test_weights_that_are_nowhere_are_named_and_leave_nothing(elsewhere, tmp_path):
    with pytest.raises(NotFound, match=r"weights/abc\.safetensors is not in memory"):
        elsewhere.fetch("abc")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="one bit flipped"),
        pytest.param(lambda data: data[:-5], id="truncated"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data + b"\0", id="too long"),
    ],
)
def test_a_damaged_object_is_refused_by_name_and_kept_out_of_the_cache(
    checkpoints, elsewhere, tmp_path, damage
):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    damaged = damage(checkpoints.store.get(layout.weights(ref.sha256)))
    checkpoints.store.put(layout.weights(ref.sha256), damaged)
    for read in (elsewhere.fetch, elsewhere.load, elsewhere.open):
        with pytest.raises(ChecksumMismatch) as error:
            read(ref.sha256)
        assert f"{layout.weights(ref.sha256)} in memory://" in str(error.value)
        assert f"({len(damaged)} bytes)" in str(error.value)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert checkpoints.store.get(layout.weights(ref.sha256)) == damaged


def test_a_damaged_local_file_is_a_checkpoint_error(checkpoints):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    local = checkpoints.fetch(ref.sha256)
    local.write_bytes(local.read_bytes()[:20])
    for read in (checkpoints.load, checkpoints.open):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            read(ref.sha256)


def test_a_full_local_disk_is_an_error_of_ours(checkpoints, tmp_path):
    with small_disk(tmp_path / "small", "1m") as small:
        full = Checkpoints(checkpoints.store, small)
        large = {"w": torch.zeros(500_000)}
        with pytest.raises(StoreUnavailable, match=f"cache {small} on this machine: .*No space"):
            full.save(large, {})
        ref = checkpoints.save(large, {})
        with pytest.raises(StoreUnavailable, match=f"cache {small} on this machine: .*No space"):
            full.fetch(ref.sha256)
        assert list(small.iterdir()) == []


def test_tensor_digests_are_those_of_the_bytes():
    halves = b"".join(struct.pack("<f", x)[2:] for x in (0.5, -1.0))  # bfloat16: the upper half
    assert tensor_digests(WEIGHTS) == {
        "w": hashlib.sha256(struct.pack("<6f", *range(6))).hexdigest(),
        "b": hashlib.sha256(halves).hexdigest(),
        "steps": hashlib.sha256(struct.pack("<q", 7)).hexdigest(),
    }
    transposed = {"w": WEIGHTS["w"].t()}
    by_column = struct.pack("<6f", 0, 3, 1, 4, 2, 5)
    assert tensor_digests(transposed)["w"] == hashlib.sha256(by_column).hexdigest()


def test_a_plain_state_dict_loads(tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    write_weights(tmp_path / "safe.safetensors", WEIGHTS, {})
    for name in ("plain.pt", "safe.safetensors"):
        loaded = load_foreign(tmp_path / name)
        assert all(torch.equal(loaded[n], WEIGHTS[n]) for n in WEIGHTS)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path):
    torch.save({"w": torch.zeros(1), "x": Trap(tmp_path / "ran")}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(tmp_path / "ran"), protocol=2))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=rf"{name}: refused: .*more than tensors"):
            load_foreign(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)  # the trap does work
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors", "empty.pt", "empty.safetensors"])
def test_garbage_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).bytes(1000)
    (tmp_path / name).write_bytes(noise if "noise" in name else b"")
    with pytest.raises(CheckpointError, match=name):
        load_foreign(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"w": 1}, torch.zeros(1)])
def test_tensors_that_are_no_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: not a state dict"):
        load_foreign(tmp_path / "other.pt")


def test_the_loser_of_a_race_adopts_the_winners_record():
    store = open_store("memory://")
    first = ingredient(key("a"), scores(7))
    lost = Tombstone(trial=trial(key("a")), reason="late", history=(), started=0, finished=1)
    assert create_record(store, "manifest", first, Manifest) == first
    assert create_record(store, "manifest", lost, Manifest) == first
    assert read_record(store, "manifest", Manifest) == first
    assert find_record(store, "nowhere", Manifest) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"type": "melted"}', encode(ingredient(key("a"), scores(7)))[:-9]],
)
def test_a_corrupt_manifest_is_an_error_that_names_it(data):
    store = open_store("memory://")
    store.put("trials/k/manifest.json", data)
    for read in (read_record, find_record):
        with pytest.raises(CheckpointError, match=r"trials/k/manifest\.json in memory://"):
            read(store, "trials/k/manifest.json", Manifest)
    with pytest.raises(CheckpointError, match="Delete it and run again"):
        create_record(store, "trials/k/manifest.json", ingredient(key("a"), scores(7)), Ingredient)


def test_a_spoilt_local_copy_is_noticed_and_fetched_again(tmp_path):
    store = open_store("memory://")
    ref = Checkpoints(store, tmp_path).save({"w": torch.ones(3)}, {})
    local = Checkpoints(store, tmp_path).fetch(ref.sha256)
    local.write_bytes(local.read_bytes()[:-1] + b"x")
    assert sha256_of(local) != ref.sha256
    assert sha256_of(Checkpoints(store, tmp_path).fetch(ref.sha256)) == ref.sha256


def test_what_several_actors_of_a_node_want_at_once_is_fetched_once(tmp_path, monkeypatch):
    store, asked = open_store("memory://"), []
    ref = Checkpoints(store, tmp_path / "writer").save({"w": torch.ones(3)}, {})
    get_range = store.get_range

    def slow(path, start, length):
        asked.append(start)
        time.sleep(0.05)  # the others come while this is on its way
        return get_range(path, start, length)

    monkeypatch.setattr(store, "get_range", slow)
    actors = [Checkpoints(store, tmp_path / "node") for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda actor: actor.load(ref.sha256)["w"].tolist(), actors))
    assert found == [[1.0, 1.0, 1.0]] * 8
    assert asked == [0]


def test_what_is_expected_comes_in_the_background_and_once(elsewhere, checkpoints, monkeypatch):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    get_range, asked = elsewhere.store.get_range, []
    began, may_come = threading.Event(), threading.Event()

    def held_back(path, start, length):
        asked.append(path)
        began.set()
        assert may_come.wait(60)
        return get_range(path, start, length)

    monkeypatch.setattr(elsewhere.store, "get_range", held_back)
    elsewhere.expect([ref.sha256, ref.sha256])
    elsewhere.expect([ref.sha256])
    assert began.wait(60)  # nobody but the background has asked for it yet
    may_come.set()
    assert torch.equal(elsewhere.load(ref.sha256)["w"], WEIGHTS["w"])
    elsewhere.expect([ref.sha256])
    assert torch.equal(elsewhere.load(ref.sha256)["w"], WEIGHTS["w"])
    assert asked == [layout.weights(ref.sha256)]


def test_arrays_that_are_no_weights_have_a_place_of_their_own(checkpoints, elsewhere):
    arrays = {"logits": torch.tensor([[0.5, -1.0]])}
    ref = checkpoints.save_blob(arrays, {"split": "d"})
    assert checkpoints.store.list("") == [f"blobs/{ref.sha256}.safetensors"]
    assert torch.equal(elsewhere.load_blob(ref.sha256)["logits"], arrays["logits"])


def test_arrays_that_an_older_version_kept_among_the_weights_are_found(checkpoints, elsewhere):
    arrays = {"logits": torch.tensor([[0.5, -1.0]])}
    ref = checkpoints.save(arrays, {"split": "d"})
    assert torch.equal(elsewhere.load_blob(ref.sha256)["logits"], arrays["logits"])


def test_what_fails_in_the_background_is_tried_again_when_it_is_wanted(
    elsewhere, checkpoints, monkeypatch
):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    size = elsewhere.store.size
    answers = [StoreUnavailable("away"), NotFound("no blob"), NotFound("not yet")]

    def failing(path):
        if answers:
            raise answers.pop()
        return size(path)

    monkeypatch.setattr(elsewhere.store, "size", failing)
    elsewhere.expect([ref.sha256])
    with pytest.raises(StoreUnavailable, match="away"):
        elsewhere.load(ref.sha256)
    assert torch.equal(elsewhere.load(ref.sha256)["w"], WEIGHTS["w"])


def test_what_is_expected_no_longer_and_has_not_begun_is_given_up(
    elsewhere, checkpoints, monkeypatch
):
    refs = [checkpoints.save({"w": torch.full((3,), float(i))}, {}) for i in range(AHEAD + 2)]
    get_range, asked, may_come = elsewhere.store.get_range, [], threading.Event()

    def held_back(path, start, length):
        asked.append(path)
        assert may_come.wait(60)
        return get_range(path, start, length)

    monkeypatch.setattr(elsewhere.store, "get_range", held_back)
    *first, given_up, last = [ref.sha256 for ref in refs]
    elsewhere.expect([*first, given_up])  # there are threads for the first alone
    elsewhere.expect([*first, last])
    may_come.set()
    elsewhere.background.shutdown()
    assert sorted(asked) == sorted(f"weights/{sha}.safetensors" for sha in [*first, last])


def test_downloads_at_once_make_room_for_all_of_them(tmp_path, monkeypatch):
    writer = Checkpoints(open_store("memory://"), tmp_path / "writer")
    refs = [writer.save({"x": torch.full((1000,), float(i))}, {}) for i in range(6)]
    size, total = refs[0].size_bytes, shutil.disk_usage(tmp_path).total
    monkeypatch.setattr("soupray.store.checkpoints.CACHE_SHARE", 4.5 * size / total)
    reader = Checkpoints(writer.store, tmp_path / "cache")
    for ref in refs[:4]:
        reader.fetch(ref.sha256)
    get_range, both = writer.store.get_range, threading.Barrier(2)

    def together(path, start, length):
        both.wait(60)  # room was made for each of them, and neither is there
        return get_range(path, start, length)

    monkeypatch.setattr(writer.store, "get_range", together)
    reader.expect([ref.sha256 for ref in refs[4:]])
    reader.background.shutdown()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4


@pytest.mark.parametrize(
    ("copies_free", "bytes_more", "left"),
    [(1, 0, "0123"), (1, -1, "123"), (0, 0, "123"), (0, -1, "23")],
)
def test_the_copies_used_longest_ago_go_where_the_disk_is_too_full(
    tmp_path, monkeypatch, copies_free, bytes_more, left
):
    writer = Checkpoints(open_store("memory://"), tmp_path / "writer")
    refs = [writer.save({"x": torch.full((1000,), float(i))}, {}) for i in range(4)]
    disk = SimpleNamespace(total=10**12, free=10**11)
    monkeypatch.setattr(
        "soupray.store.checkpoints.shutil", SimpleNamespace(disk_usage=lambda folder: disk)
    )
    reader = Checkpoints(writer.store, tmp_path / "cache")
    for now, ref in enumerate(refs[:3]):
        os.utime(reader.fetch(ref.sha256), (now, now))
    disk.free = copies_free * refs[0].size_bytes + bytes_more
    reader.fetch(refs[3].sha256)
    there = {path.stem for path in (tmp_path / "cache").glob("*.safetensors")}
    assert there == {refs[int(i)].sha256 for i in left}


def test_a_copy_that_goes_before_it_is_opened_is_fetched_again(elsewhere, checkpoints, monkeypatch):
    ref = checkpoints.save(WEIGHTS, ABOUT)
    gone = []

    def opened(path):
        if not gone:  # another process makes room just now
            gone.append(path)
            path.unlink()
        return MappedWeights(path)

    monkeypatch.setattr("soupray.store.checkpoints.MappedWeights", opened)
    assert elsewhere.load(ref.sha256)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert gone == [elsewhere.fetch(ref.sha256)]


def test_copies_take_half_of_the_disk_and_no_byte_more(tmp_path, monkeypatch):
    writer = Checkpoints(open_store("memory://"), tmp_path / "writer")
    refs = [writer.save({"x": torch.full((1000,), float(i))}, {}) for i in range(5)]
    disk = SimpleNamespace(total=6 * refs[0].size_bytes, free=10**12)
    monkeypatch.setattr(
        "soupray.store.checkpoints.shutil", SimpleNamespace(disk_usage=lambda folder: disk)
    )
    cache = tmp_path / "cache"
    reader = Checkpoints(writer.store, cache)
    left = []
    for now, ref in enumerate(refs):
        os.utime(reader.fetch(ref.sha256), (now, now))
        left.append(len(list(cache.glob("*.safetensors"))))
        if now == 3:
            disk.total -= 1
    assert left == [1, 2, 3, 3, 2]


def test_a_part_of_a_download_is_removed_a_day_after_its_process_died(tmp_path, monkeypatch):
    writer = Checkpoints(open_store("memory://"), tmp_path / "writer")
    refs = [writer.save({"x": torch.full((1000,), float(i))}, {}) for i in range(2)]
    size, cache = refs[0].size_bytes, tmp_path / "cache"
    disk = SimpleNamespace(total=10**12, free=10**11)
    monkeypatch.setattr(
        "soupray.store.checkpoints.shutil", SimpleNamespace(disk_usage=lambda folder: disk)
    )
    reader = Checkpoints(writer.store, cache)
    kept = reader.fetch(refs[0].sha256)
    now = int(time.time())
    monkeypatch.setattr("soupray.store.checkpoints.time", SimpleNamespace(time=lambda: now))
    for name, age in (("old", 24 * 3600 + 1), ("young", 24 * 3600)):
        (cache / name).write_bytes(b"x" * (size // 2))
        os.utime(cache / name, (now - age, now - age))
    disk.free = 0  # the old part alone is not enough: the copy goes too, and not the young part
    new = reader.fetch(refs[1].sha256)
    assert {path.name for path in cache.iterdir()} == {"young", new.name}
    assert not kept.exists()


@pytest.mark.parametrize("size", [1, 99, 100, 101, 250, 1000])
def test_ranges_put_together_are_the_object(tmp_path, monkeypatch, size):
    monkeypatch.setattr("soupray.store.checkpoints.RANGE_BYTES", 100)
    store = open_store("memory://")
    data = np.random.default_rng(size).bytes(size)
    store.put("weights/x.safetensors", data)
    checkpoints = Checkpoints(store, tmp_path)
    get_range, asked = store.get_range, []

    def watched(path, start, length):
        asked.append((start, length))
        return get_range(path, start, length)

    monkeypatch.setattr(store, "get_range", watched)
    ranges = list(checkpoints.ranges("weights/x.safetensors", size))
    assert b"".join(ranges) == data
    assert len(ranges) == -(-size // 100)
    whole = [(start, 100) for start in range(0, size - 99, 100)]
    rest = [(size - size % 100, size % 100)] if size % 100 else []
    assert sorted(asked) == whole + rest


def test_the_copies_used_longest_ago_make_room(tmp_path, monkeypatch):
    store = open_store("memory://")
    writer = Checkpoints(store, tmp_path / "writer")
    refs = [writer.save({"x": torch.full((1000,), float(i))}, {}) for i in range(4)]
    size = refs[0].size_bytes
    total = shutil.disk_usage(tmp_path).total
    monkeypatch.setattr("soupray.store.checkpoints.CACHE_SHARE", 2.5 * size / total)
    cache = tmp_path / "cache"
    reader = Checkpoints(store, cache)
    for now, i in enumerate((0, 1, 0, 2)):  # 1 is what was used longest ago when 2 comes
        os.utime(reader.fetch(refs[i].sha256), (now, now))
    assert {p.stem for p in cache.glob("*.safetensors")} == {refs[0].sha256, refs[2].sha256}
    held = reader.open(refs[0].sha256)
    reader.fetch(refs[3].sha256)
    reader.fetch(refs[1].sha256)
    assert not (cache / f"{refs[0].sha256}.safetensors").exists()
    assert held["x"].tolist() == [0.0] * 1000  # what is mapped stays readable
    assert reader.load(refs[0].sha256)["x"].tolist() == [0.0] * 1000  # and is fetched again
