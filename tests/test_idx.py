"""IDX files: bytes worked out by hand, splits by class, and every way in which a file is broken."""

import gzip

import numpy as np
import pytest
from idx_files import idx_bytes, tiny, write_data_set, write_idx

from soupray.core.errors import ConfigError, EvaluationError
from soupray.data.cache import open_data
from soupray.data.idx import find_folder, load_part, read_idx, split_idx
from soupray.spec.data import HeldOutParts, IdxSpec

# Two images of one row and three columns.
BYTES = bytes.fromhex("00000803 00000002 00000001 00000003") + bytes([1, 2, 3, 4, 5, 255])
ARRAY = [[[1, 2, 3]], [[4, 5, 255]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("idx")
    write_data_set(path, ".gz")
    return path


def spec_of(folder, train=30, held_out: int | HeldOutParts = 20) -> IdxSpec:
    return IdxSpec(kind="idx", folders=(str(folder),), train=train, held_out=held_out)


def test_the_bytes_of_a_file_by_hand(tmp_path):
    plain, zipped = tmp_path / "x", tmp_path / "x.gz"
    plain.write_bytes(BYTES)
    zipped.write_bytes(gzip.compress(BYTES))
    assert read_idx(plain, dimensions=3).tolist() == ARRAY
    assert read_idx(zipped, dimensions=3).tolist() == ARRAY
    assert idx_bytes(np.array(ARRAY)) == BYTES


def test_plain_and_gzipped_files_hold_the_same_data_set(folder, tmp_path):
    write_data_set(tmp_path)
    for part, size in (("train", 80), ("t10k", 20)):
        plain, zipped = load_part(tmp_path, part), load_part(folder, part)
        assert plain.ids == zipped.ids == [f"{part}/{i}" for i in range(size)]
        assert plain.images.shape == (size, 1, 28, 28)
        assert (plain.images == zipped.images).all()
        assert (plain.labels == zipped.labels).all()
        brightness = plain.images.mean(axis=(1, 2, 3))  # 23 times the label, and up to 19
        assert (brightness // 23).tolist() == plain.labels.tolist()


def test_train_and_held_out_are_drawn_by_class_and_test_is_all_of_t10k(folder):
    parts = split_idx(spec_of(folder, train=33, held_out=22), seed=0)
    assert list(parts) == ["train", "held_out", "test"]
    assert np.bincount(parts["train"].labels).tolist() == [4, 4, 4, 3, 3, 3, 3, 3, 3, 3]
    assert np.bincount(parts["held_out"].labels).tolist() == [3, 3, 2, 2, 2, 2, 2, 2, 2, 2]
    assert parts["test"].ids == [f"t10k/{i}" for i in range(20)]
    assert not set(parts["train"].ids) & set(parts["held_out"].ids)
    every = load_part(folder, "train")
    for name in ("train", "held_out"):
        rows = [int(i.removeprefix("train/")) for i in parts[name].ids]
        assert rows == sorted(rows)
        assert (parts[name].images == every.images[rows]).all()
        assert (parts[name].labels == every.labels[rows]).all()


def test_the_draw_depends_on_the_seed_and_on_nothing_else(folder):
    first, again, other = (split_idx(spec_of(folder), seed)["train"].ids for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_held_out_in_two_parts_is_the_plain_one_cut_in_two(folder):
    plain = split_idx(spec_of(folder, held_out=23), seed=3)
    cut = split_idx(spec_of(folder, held_out=HeldOutParts(select=12, rank=11)), seed=3)
    assert list(cut) == ["train", "held_out", "rank", "test"]
    assert cut["train"].ids == plain["train"].ids
    assert not set(cut["held_out"].ids) & set(cut["rank"].ids)
    assert {*cut["held_out"].ids, *cut["rank"].ids} == set(plain["held_out"].ids)
    # 23 of ten classes: 3 of the first three; 12: 2 of the first two; the rest is for ranking.
    assert np.bincount(cut["held_out"].labels).tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert np.bincount(cut["rank"].labels).tolist() == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1]


def test_the_cache_has_all_splits_with_their_roles(folder, tmp_path):
    two = "held_out: {select: 15, rank: 10} "
    data = open_data(tiny(folder, ("held_out: 20 ", two)), tmp_path)
    shifts = ["blurred", "faded", "moved", "pixelated", "occluded"]
    assert [(s.name, s.role, s.size) for s in data.splits] == [
        ("train", "train", 30),
        ("held_out", "held_out", 15),
        ("rank", "rank", 10),
        ("test", "test", 20),
        *((name, "shift", 20) for name in shifts),
    ]
    assert len({s.digest for s in data.splits}) == 9
    images, labels = data.samples(data.split("test"))
    assert (images == load_part(folder, "t10k").images).all()
    assert (labels == load_part(folder, "t10k").labels).all()


def test_other_files_under_the_same_name_are_noticed(tmp_path):
    write_data_set(tmp_path / "set")
    spec = tiny(tmp_path / "set")
    split = open_data(spec, tmp_path / "cache").split("held_out")
    write_data_set(tmp_path / "set", seed=1)
    with pytest.raises(EvaluationError, match="split held_out: the data here have digest"):
        open_data(spec, tmp_path / "cache").samples(split)


def test_the_first_folder_that_exists_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    assert find_folder((str(tmp_path / "gone"), "~/there", "/")) == tmp_path / "there"
    with pytest.raises(ConfigError) as error:
        find_folder(("/gone", "~/gone"))
    assert "data.folders: there is no folder /gone or ~/gone. Debian's package" in str(error.value)
    assert "dataset-fashion-mnist" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    write_data_set(tmp_path, ".gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigError) as error:
        split_idx(spec_of(tmp_path), seed=0)
    said = f"{tmp_path}: there is no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz. Debian's"
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (BYTES[:-1], "truncated or corrupt: 21 bytes, but its header says 16 and 2 x 1 x 3"),
        (
            BYTES + b"x",
            "truncated or corrupt: more than 22 bytes, but its header says 16 and 2 x 1",
        ),
        (BYTES[:10], "truncated or corrupt: 10 bytes"),
        (bytes.fromhex("00000803") + bytes(12), "its header says 16 and 0 x 0 x 0"),
        (idx_bytes(np.arange(3)), "starts with 0x00000801. An IDX file of unsigned bytes in 3"),
        # Type 0x0d is float32.
        (bytes.fromhex("00000d03") + BYTES[4:], "starts with 0x00000d03"),
        (b"<html>", "not the file that its name says: it starts with 0x3c68746d"),
        (
            b"",
            "it starts with 0x. An IDX file of unsigned bytes in 3 dimension(s) starts with "
            "0x00000803",
        ),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, data, said):
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        read_idx(path, dimensions=3)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "data",
    [gzip.compress(BYTES, mtime=0)[:-9], b"not gzip", gzip.compress(b"", mtime=0)[:5]],
    ids=["cut off", "no gzip", "only a header"],  # the same in every process of xdist
)
def test_a_broken_gzip_is_an_error_of_the_spec(tmp_path, data):
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"images\.gz: cannot be read: .* Fetch it again\."):
        read_idx(path, dimensions=3)


def test_images_and_labels_that_differ_in_number_are_refused(tmp_path):
    write_data_set(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(79))
    with pytest.raises(ConfigError, match=r"80 images but 79 labels in the train files"):
        split_idx(spec_of(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("train", "held_out", "said"),
    [
        # 61 + 20 of ten classes: 9 of class 0, which has 8.
        (61, 20, "data.train = 61 and data.held_out = 20 need 9 images of class 0, but the"),
        (30, 9, "data.held_out = 9: held-out data chooses the soup and needs at least one image"),
        (30, HeldOutParts(select=9, rank=20), "data.held_out.select = 9: held-out data chooses"),
        (30, HeldOutParts(select=20, rank=9), "data.held_out.rank = 9: held-out data ranks the"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_the_numbers(folder, train, held_out, said):
    with pytest.raises(ConfigError) as error:
        split_idx(spec_of(folder, train, held_out), seed=0)
    assert said in str(error.value)


def test_the_names_of_the_classes_are_counted(folder, tmp_path):
    with pytest.raises(ConfigError) as error:
        open_data(tiny(folder, ("    - ankle boot\n", "")), tmp_path)
    assert "task.classes has 9 names; data of kind idx have 10 classes, labelled 0 to 9." in str(
        error.value
    )
