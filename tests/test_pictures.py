"""Images in folders, shards and data sets: read, resized, divided, checked, cached, streamed."""

import gzip
import io
import json
import struct
from pathlib import Path

import datasets
import numpy as np
import open_clip
import pytest
import torch
import torchvision
from pictures import encoded, pixels, spec_of, write_folders, write_image, write_shard
from PIL import Image
from shared import small_disk
from timm.data import create_transform
from torchvision.datasets import ImageFolder

from soupray.core.errors import ConfigError, EvaluationError
from soupray.data.cache import open_data, planned
from soupray.data.decoding import Look, Unreadable, decode
from soupray.data.folders import list_part
from soupray.data.reading import keep_rows
from soupray.data.shards import list_shards, shards
from soupray.tasks.pixels import Pixels

TRAIN = {"ant": 6, "bee": 7, "cat": 8}
TEST = {"ant": 2, "bee": 3, "cat": 2}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_folders(root / "train", TRAIN)
    write_folders(root / "val", TEST, seed=1000)
    return root


def folder_spec(root, *more: str, test: object = "", classes: str | None = None):
    lines = [
        "kind: folder",
        f"train: {root}/train",
        f"test: {test or f'{root}/val'}",
        "size: 16",
        *more,
    ]
    if not any(line.startswith("held_out") for line in more):
        lines.append("held_out: 3")
    return spec_of("\n".join(lines), classes)


# Decoding


@pytest.mark.parametrize("shape", [(300, 400), (401, 299), (224, 224), (230, 224), (97, 500)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_inputs_are_those_of_open_clips_own_transform(shape, mode):
    data = encoded(np.asarray(Image.fromarray(pixels(3, shape)).convert(mode)), quality=90)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    with Image.open(io.BytesIO(data)) as image:
        wanted = open_clip.image_transform(224, is_train=False, mean=mean, std=std)(image)
    stored = decode(data, Look(224, 3))
    assert (stored.shape, stored.dtype) == ((3, 224, 224), np.uint8)
    inputs = Pixels((224, 224), mean, std)(torch.from_numpy(stored.copy())[None])
    assert torch.equal(inputs[0], wanted)
    timms = create_transform((3, 224, 224), mean=mean, std=std, interpolation="bicubic", crop_pct=1)
    with Image.open(io.BytesIO(data)) as image:
        assert torch.equal(inputs[0], timms(image.convert("RGB")))


def test_an_image_of_the_size_asked_for_is_left_alone():
    array = pixels(1, (16, 16))
    assert (decode(array, Look(16, 3)) == array.transpose(2, 0, 1)).all()
    assert (decode(encoded(array, "PNG"), Look(16, 3)) == array.transpose(2, 0, 1)).all()
    assert (decode(array[:, :, 0], Look(16, 1)) == array[None, :, :, 0]).all()


def test_a_palette_is_resolved_before_the_resizing():
    image = Image.fromarray(pixels(1, (40, 40))).convert("P")
    png = io.BytesIO()
    image.save(png, "PNG")
    wanted = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    assert (decode(png.getvalue(), Look(16, 3)) == np.asarray(wanted).transpose(2, 0, 1)).all()


def test_the_border_is_cut_off_first():
    framed = np.zeros((20, 20, 3), np.uint8)
    framed[2:18, 2:18] = pixels(4, (16, 16))
    wanted = pixels(4, (16, 16)).transpose(2, 0, 1)
    assert (decode(framed, Look(16, 3), border=2) == wanted).all()


@pytest.mark.parametrize("data", [b"", b"no image", encoded(pixels(1))[:-40]])
def test_what_is_no_image_is_unreadable(data):
    with pytest.raises(Unreadable):
        decode(data, Look(16, 3))


# Folders


def test_a_folder_has_the_samples_of_torchvisions_image_folder(tmp_path):
    root = tmp_path / "train"
    write_folders(root, {"10": 2, "9": 3, "b": 1})
    write_image(root / "9" / "deep" / "er" / "x.png", 77)
    (root / "9" / "notes.txt").write_text("no image")
    oracle = ImageFolder(root)
    spec = folder_spec(tmp_path).data
    mine, _ = list_part(spec.train, ("10", "9", "b"), spec, "data.train")
    assert [str(root / i) for i in mine.ids] == [path for path, _ in oracle.samples]
    assert mine.labels.tolist() == oracle.targets
    assert mine.raw(3) == Path(oracle.samples[3][0]).read_bytes()


def test_the_cache_of_folders(tree, tmp_path):
    data = open_data(folder_spec(tree), tmp_path)
    assert [(s.name, s.role, s.size, s.classes, s.label_map) for s in data.splits] == [
        ("train", "train", 18, 3, None),
        ("held_out", "held_out", 3, 3, None),
        ("test", "test", 7, 3, None),
    ]
    for name, side, root in (
        ("train", 18, "train"),
        ("held_out", 16, "train"),
        ("test", 16, "val"),
    ):
        images, labels = data.samples(data.split(name))
        assert isinstance(images, np.memmap)
        assert images.shape[1:] == (3, side, side)
        for i, sample_id in enumerate(data.ids(data.split(name))):
            raw = (tree / root / sample_id).read_bytes()
            assert (images[i] == decode(raw, Look(side, 3))).all()
            assert labels[i] == ["ant", "bee", "cat"].index(sample_id.split("/")[0])
    assert not set(data.ids(data.split("train"))) & set(data.ids(data.split("held_out")))
    assert data.notes == ()


def test_class_names_may_be_left_out_for_folders(tree):
    assert folder_spec(tree).task.classes == ("ant", "bee", "cat")
    with pytest.raises(ConfigError, match=r"task\.classes is left out.*no folder /gone/train"):
        folder_spec("/gone")


def test_test_may_be_drawn_from_train_by_class(tree, tmp_path):
    spec = folder_spec(tree, "held_out: {select: 3, rank: 4}", test=5)
    data = open_data(spec, tmp_path)
    ids = {s.name: data.ids(s) for s in data.splits}
    assert {name: len(found) for name, found in ids.items()} == {
        "train": 21 - 12, "held_out": 3, "rank": 4, "test": 5,
    }  # fmt: skip
    assert len({i for found in ids.values() for i in found}) == 21
    labels = np.asarray(data.samples(data.split("test"))[1])
    assert np.bincount(labels).tolist() == [2, 2, 1]
    assert planned(spec).sizes == [(s.name, s.role, s.size) for s in data.splits]


def test_held_out_samples_by_id_are_those_and_come_back_as_they_were(tree, tmp_path):
    first = open_data(folder_spec(tree), tmp_path / "a")
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(reversed(first.ids(first.split("held_out")))))
    spec = folder_spec(tree, f"held_out: {{ids: {listed}}}")
    again = open_data(spec, tmp_path / "b")
    assert [s.digest for s in again.splits] == [s.digest for s in first.splits]
    listed.write_text("ant/0.jpg\n\ncat/3.jpg\nbee/1.jpg\n")
    other = open_data(spec, tmp_path / "b")
    assert other.ids(other.split("held_out")) == ["ant/0.jpg", "bee/1.jpg", "cat/3.jpg"]
    assert other.split("train").size == 18


def test_held_out_samples_by_the_published_mask(tree, tmp_path):
    mask = np.ones(21)
    mask[[0, 6, 20]] = 0
    np.save(tmp_path / "idxs.npy", mask)
    data = open_data(folder_spec(tree, f"held_out: {{ids: {tmp_path}/idxs.npy}}"), tmp_path)
    assert data.ids(data.split("held_out")) == ["ant/0.jpg", "bee/0.jpg", "cat/7.jpg"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "ant/0.jpg\nant/9.jpg\n",
            "1 of the 2 ids in .* are not ids of train samples, like 'ant/9.jpg'",
        ),
        ("ant/0.jpg\nant/0.jpg\n", "lists 'ant/0.jpg' more than once"),
        ("\n", "lists no samples to hold out"),
        ("ant/0.jpg\ncat/0.jpg\n", "lists 2 samples: .* of the 3 classes. List 3 or more."),
    ],
)
def test_a_list_of_ids_that_cannot_be_is_refused(tree, tmp_path, text, said):
    (tmp_path / "ids").write_text(text)
    with pytest.raises(ConfigError, match=said):
        open_data(folder_spec(tree, f"held_out: {{ids: {tmp_path}/ids}}"), tmp_path)


def test_a_label_map_groups_folders_and_leaves_out_the_others(tree, tmp_path):
    (tmp_path / "map.yaml").write_text("mammal: cat\ninsect: [bee, ant]\n")
    spec = folder_spec(tree, f"label_map: {tmp_path}/map.yaml")
    assert spec.task.classes == ("mammal", "insect")
    data = open_data(spec, tmp_path)
    test = data.split("test")
    animals = [i.split("/")[0] for i in data.ids(test)]
    assert data.samples(test)[1].tolist() == [int(a != "cat") for a in animals]
    (tmp_path / "map.yaml").write_text("mammal: cat\ninsect: bee\n")
    fewer = open_data(spec, tmp_path)
    assert {i.split("/")[0] for i in fewer.ids(fewer.split("train"))} == {"bee", "cat"}
    (tmp_path / "map.yaml").write_text("mammal: cat\ninsect: [bee, cat]\n")
    with pytest.raises(ConfigError, match="folder cat is listed under insect and another class"):
        open_data(spec, tmp_path)


def test_broken_trees_are_named(tree, tmp_path):
    write_folders(tmp_path / "train", TRAIN)
    write_folders(tmp_path / "val", {"ant": 1, "dog": 1})
    spec = folder_spec(tmp_path)
    with pytest.raises(ConfigError, match=r"1 of its 2 classes are not in task.classes[^W]* 'dog'"):
        open_data(spec, tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"folder .*/empty has no images \(\.jpg"):
        open_data(folder_spec(tmp_path, test=3), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.test: there is no folder /gone"):
        open_data(folder_spec(tree, test="/gone"), tmp_path)
    with pytest.raises(ConfigError, match=r"need 6 images of class 0 and leave none to train"):
        open_data(folder_spec(tree, "held_out: 16"), tmp_path)


def test_another_file_under_the_same_name_is_noticed(tmp_path):
    write_folders(tmp_path / "train", TRAIN)
    write_folders(tmp_path / "val", TEST, seed=1000)
    spec = folder_spec(tmp_path)
    before = open_data(spec, tmp_path / "cache").split("test")
    write_image(tmp_path / "val" / "ant" / "0.jpg", 4711)
    after = open_data(spec, tmp_path / "cache")
    assert after.split("test").digest != before.digest
    with pytest.raises(EvaluationError, match="split test: the data here have digest"):
        after.samples(before)


# Images that cannot be read, and images that are there twice


def spoiled(root):
    write_folders(root / "train", TRAIN)
    write_folders(root / "val", TEST, seed=1000)
    path = root / "val" / "bee" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    (root / "train" / "cat" / "0.jpg").write_bytes(b"<html>")


@pytest.mark.parametrize("keep", ["mapped", "stream"])
def test_an_unreadable_image_is_named_and_left_out_only_if_asked(tmp_path, keep):
    spoiled(tmp_path)
    how = f"keep: {keep}"
    with pytest.raises(ConfigError) as error:
        open_data(folder_spec(tmp_path, how), tmp_path / "cache")
    assert str(error.value).startswith(
        "1 of 7 images of the test split cannot be read: bee/1.jpg (OSError: image file is trunc"
    )
    assert not list((tmp_path / "cache").glob("*.part"))
    data = open_data(folder_spec(tmp_path, how, "on_error: skip"), tmp_path / "cache")
    assert (data.split("train").size, data.split("test").size) == (17, 6)
    assert "bee/1.jpg" not in data.ids(data.split("test"))
    assert [note.split(":")[0] for note in data.notes] == [
        "1 of 7 images of the test split cannot be read",
        "1 of 18 images of the train split cannot be read",
    ]
    assert "cat/0.jpg (not an image of a known format" in data.notes[1]
    images, labels = data.samples(data.split("test"))
    assert len(images) == len(labels) == 6
    raw = (tmp_path / "val" / data.ids(data.split("test"))[3]).read_bytes()
    assert (images[3] == decode(raw, Look(16, 3))).all()


def doubled(root):
    """One test image is in train, twice, once under another class."""
    write_folders(root / "train", TRAIN)
    write_folders(root / "val", TEST, seed=1000)
    same = (root / "val" / "bee" / "2.jpg").read_bytes()
    (root / "train" / "bee" / "again.jpg").write_bytes(same)
    (root / "train" / "cat" / "more.jpg").write_bytes(same)


@pytest.mark.parametrize("keep", ["mapped", "stream"])
def test_the_same_image_in_train_and_test_is_refused_or_dropped_from_train(tmp_path, keep):
    doubled(tmp_path)
    listed = tmp_path / "ids"
    listed.write_text("ant/0.jpg\nbee/0.jpg\ncat/0.jpg\n")
    how = [f"keep: {keep}", f"held_out: {{ids: {listed}}}"]
    with pytest.raises(ConfigError) as error:
        open_data(folder_spec(tmp_path, *how), tmp_path / "cache")
    assert str(error.value) == (
        "2 of 20 images of the train split are in another split too: bee/again.jpg = test "
        "bee/2.jpg; cat/more.jpg = test bee/2.jpg. Remove them, or write data.overlap: drop."
    )
    data = open_data(folder_spec(tmp_path, *how, "overlap: drop"), tmp_path / "cache")
    assert data.split("train").size == 23 - 3 - 2
    assert not {"bee/again.jpg", "cat/more.jpg"} & set(data.ids(data.split("train")))
    assert data.split("test").size == 7
    assert data.notes[0].startswith("2 of 20 images of the train split are in another split too: ")
    assert data.notes[0].endswith("; they are left out of train")


def test_held_out_images_are_not_those_of_test_rank_or_a_shift(tmp_path):
    doubled(tmp_path)
    write_folders(tmp_path / "shift", {"ant": 1}, seed=500)
    same = (tmp_path / "shift" / "ant" / "0.jpg").read_bytes()
    (tmp_path / "train" / "ant" / "drawn.jpg").write_bytes(same)
    held_out = ["ant/0.jpg", "ant/drawn.jpg", "bee/0.jpg", "bee/again.jpg", "cat/0.jpg"]
    (tmp_path / "ids").write_text("\n".join(held_out))
    how = [
        f"held_out: {{ids: {tmp_path}/ids}}",
        f"shifts: [{{kind: folder, name: far, root: {tmp_path}/shift}}]",
    ]
    with pytest.raises(ConfigError) as error:
        open_data(folder_spec(tmp_path, *how), tmp_path / "cache")
    assert str(error.value).startswith(
        "2 of 5 images of the held_out split are in another split too: ant/drawn.jpg = far "
        "ant/0.jpg; bee/again.jpg = test bee/2.jpg."
    )
    data = open_data(folder_spec(tmp_path, *how, "overlap: drop"), tmp_path / "cache")
    assert data.ids(data.split("held_out")) == ["ant/0.jpg", "bee/0.jpg", "cat/0.jpg"]
    assert [note.rpartition(" ")[2] for note in data.notes] == ["held_out", "train"]


def test_a_copy_within_one_split_is_no_overlap(tmp_path):
    write_folders(tmp_path / "train", TRAIN)
    write_folders(tmp_path / "val", TEST, seed=1000)
    for _ in range(2):
        (tmp_path / "val" / "ant" / "x.jpg").write_bytes(
            (tmp_path / "val" / "ant" / "0.jpg").read_bytes()
        )
    assert open_data(folder_spec(tmp_path), tmp_path / "cache").split("test").size == 8


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(tree, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(
            ConfigError, match=r"no room for 0\.0\d+ GB of decoded images: No space"
        ):
            open_data(folder_spec(tree, "train_size: 500"), disk)
        assert [path.suffix for path in disk.iterdir()] == [".lock"]
        streamed = open_data(folder_spec(tree, "train_size: 500", "keep: stream"), disk)
        assert streamed.samples(streamed.split("train"))[0][:2].shape == (2, 3, 500, 500)


def test_rows_are_kept_in_the_type_that_they_have(tmp_path):
    numbers = np.arange(30).reshape(10, 3) * 1000
    np.save(tmp_path / "x.images.npy", numbers)
    keep_rows(tmp_path / "x.images.npy", np.array([0, 4, 9]))
    kept = np.load(tmp_path / "x.images.npy")
    assert (kept.dtype, kept.tolist()) == (numbers.dtype, numbers[[0, 4, 9]].tolist())


# Streams


def test_a_streamed_train_split_gives_what_the_mapped_one_holds(tree, tmp_path):
    mapped = open_data(folder_spec(tree), tmp_path)
    streamed = open_data(folder_spec(tree, "keep: stream"), tmp_path)
    assert list(tmp_path.glob("*/train.rows.npy"))
    assert len(list(tmp_path.glob("*/train.images.npy"))) == 1
    assert streamed.ids(streamed.split("train")) == mapped.ids(mapped.split("train"))
    wanted, labels = mapped.samples(mapped.split("train"))
    images, same = streamed.samples(streamed.split("train"))
    assert (labels == same).all()
    assert (len(images), images.shape, images.dtype) == (18, wanted.shape, wanted.dtype)
    for rows in (slice(3, 9), slice(0, 0), np.array([5, 0, 5]), 4, -1):
        assert isinstance(images[rows], np.ndarray)
        assert (images[rows] == wanted[rows]).all()
        assert images[rows].shape == wanted[rows].shape


def test_a_file_that_breaks_after_the_first_look_is_named(tree, tmp_path):
    write_folders(tmp_path / "train", TRAIN)
    data = open_data(folder_spec(tmp_path, "keep: stream", test=3), tmp_path / "cache")
    images, _ = data.samples(data.split("train"))
    images[:2]
    name = data.ids(data.split("train"))[0]
    (tmp_path / "train" / name).unlink()
    with pytest.raises(EvaluationError, match=f"image {name} of the train split could be read"):
        images[:2]


# WebDataset


def members(first: int, count: int, image: str = "jpg") -> dict[str, bytes]:
    found = {}
    for i in range(first, first + count):
        kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image]
        found[f"a/{i:04d}.{image}"] = encoded(pixels(i), kind)
        found[f"a/{i:04d}.cls"] = str(i % 3).encode()
        found[f"a/{i:04d}.json"] = b"{}"
    return found


def test_shards_hold_the_images_and_labels_of_their_tar_members(tmp_path):
    write_shard(tmp_path / "s-08.tar", members(0, 4))
    write_shard(tmp_path / "s-09.tar", members(4, 3, "png"))
    write_shard(tmp_path / "s-10.tar", members(7, 2, "webp"))
    found = list_shards(f"{tmp_path}/s-{{08..10}}.tar", "data.train")
    assert found.ids == [f"s-{'08' if i < 4 else '09' if i < 7 else '10'}.tar/a/{i:04d}" for i in range(9)]  # noqa: E501 # fmt: skip
    assert found.labels.tolist() == [i % 3 for i in range(9)]
    every = members(0, 4) | members(4, 3, "png") | members(7, 2, "webp")
    images = [data for name, data in every.items() if not name.endswith(("cls", "json"))]
    assert [found.raw(i) for i in range(9)] == images
    assert list_shards(f"{tmp_path}/s-*.tar", "data.train").ids == found.ids


@pytest.mark.parametrize("keep", ["mapped", "stream"])
def test_the_cache_of_shards(tmp_path, keep):
    write_shard(tmp_path / "t" / "0.tar", members(0, 12))
    write_shard(tmp_path / "v" / "0.tar", members(100, 6))
    lines = f"""
        kind: webdataset
        train: {tmp_path}/t/*.tar
        test: {tmp_path}/v/*.tar
        held_out: 3
        size: 16
        keep: {keep}"""
    data = open_data(spec_of(lines), tmp_path / "cache")
    assert [s.size for s in data.splits] == [9, 3, 6]
    images, _ = data.samples(data.split("train"))
    first = data.ids(data.split("train"))[0].rpartition("/")[2]
    assert (images[0] == decode(members(int(first), 1)[f"a/{first}.jpg"], Look(18, 3))).all()


@pytest.mark.parametrize(
    ("members_of", "said"),
    [
        ({"1.jpg": b""}, "sample '1' has no .cls"),
        ({"1.cls": b"0"}, r"sample '1' has no image \(.jpg, .jpeg"),
        ({"1.jpg": b"", "1.cls": b"cat"}, "sample '1' has the .cls 'cat', which is not a class"),
    ],
)
def test_a_shard_that_cannot_be_read_is_named(tmp_path, members_of, said):
    write_shard(tmp_path / "x.tar", members_of)
    with pytest.raises(ConfigError, match=said):
        list_shards(f"{tmp_path}/x.tar", "data.train")


def test_shards_that_are_missing_or_compressed_are_named(tmp_path):
    write_shard(tmp_path / "s-0.tar", members(0, 1))
    with pytest.raises(ConfigError, match=r"there is no shard .*/s-1\.tar"):
        shards(f"{tmp_path}/s-{{0..1}}.tar", "data.train")
    with pytest.raises(ConfigError, match=r"there is no shard .*/none\*"):
        shards(f"{tmp_path}/none*", "data.train")
    (tmp_path / "z.tar").write_bytes(gzip.compress(b"x" * 1000))
    with pytest.raises(ConfigError, match="not a plain tar file"):
        list_shards(f"{tmp_path}/z.tar", "data.train")


def test_a_label_beyond_the_classes_is_an_error(tmp_path):
    bad = {"9.jpg": encoded(pixels(1)), "9.cls": b"3"}
    write_shard(tmp_path / "t.tar", members(0, 12))
    write_shard(tmp_path / "v.tar", bad)
    lines = f"""
        kind: webdataset
        train: {tmp_path}/t.tar
        test: {tmp_path}/v.tar
        held_out: 3
        size: 16"""
    with pytest.raises(ConfigError, match=r"task\.classes has 3 names; .* have 4 classes"):
        open_data(spec_of(lines), tmp_path / "cache")


# torchvision and Hugging Face


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()  # noqa: E501 # fmt: skip


CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
CLOTHES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def test_a_data_set_of_torchvision(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    drawn = np.random.default_rng(0).integers(0, 256, (46, 28, 28)).astype(np.uint8)
    for part, images in (("train", drawn[:26]), ("t10k", drawn[26:])):
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    lines = f"""
        kind: torchvision
        name: FashionMNIST
        root: {tmp_path}
        held_out: 10
        size: 28
        train_size: 28
        channels: 1"""
    data = open_data(spec_of(lines, f"classes: {CLOTHES}"), tmp_path / "cache")
    assert [s.size for s in data.splits] == [16, 10, 20]
    images, labels = data.samples(data.split("test"))
    assert (images == drawn[26:, None]).all()
    assert labels.tolist() == [*range(10), *range(10)]
    rows = [int(i) for i in data.ids(data.split("train"))]
    assert (data.samples(data.split("train"))[0] == drawn[rows, None]).all()
    # The names decide, in whatever order the spec lists them.
    turned = open_data(spec_of(lines, f"classes: {CLOTHES[::-1]}"), tmp_path / "cache")
    assert turned.samples(turned.split("test"))[1].tolist() == [*range(9, -1, -1)] * 2
    with pytest.raises(ConfigError, match=r"FashionMNIST of torchvision.*\n.*\n  'Top' +'T-shirt"):
        open_data(spec_of(lines, f"classes: {['Top', *CLOTHES[1:]]}"), tmp_path / "cache")
    (tmp_path / "map.yaml").write_text(
        "\n".join(["Top: T-shirt/top", *(f"{name}: {name}" for name in CLOTHES[1:])])
    )
    mapped = f"{lines}\n        label_map: {tmp_path}/map.yaml"
    data = open_data(spec_of(mapped, f"classes: {[*CLOTHES[1:], 'Top']}"), tmp_path / "cache")
    assert data.samples(data.split("test"))[1].tolist() == [9, *range(9)] * 2


def test_a_data_set_of_torchvision_with_images_in_files(tmp_path):
    meta = tmp_path / "food-101" / "meta"
    meta.mkdir(parents=True)
    for part, count in (("train", 4), ("test", 1)):
        names = {c: [f"{c}/{part}{i}" for i in range(count)] for c in ("apple", "bread")}
        (meta / f"{part}.json").write_text(json.dumps(names))
        for path in [p for paths in names.values() for p in paths]:
            seed = sum(path.encode())
            write_image(tmp_path / "food-101" / "images" / f"{path}.jpg", seed)
    photo = tmp_path / "food-101" / "images" / "apple" / "test0.jpg"
    exif = Image.Exif()
    exif[274] = 6  # taken with the camera on its side
    drawn = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    Image.fromarray(drawn).save(photo, quality=95, exif=exif)
    lines = f"kind: torchvision\nname: Food101\nroot: {tmp_path}\nheld_out: 2\nsize: 16"
    data = open_data(spec_of(lines, "classes: [apple, bread]"), tmp_path / "cache")
    assert [s.size for s in data.splits] == [6, 2, 2]
    mine = data.samples(data.split("test"))[0][0]
    assert (mine == decode(photo.read_bytes(), Look(16, 3))).all()
    upright = np.asarray(Image.open(photo)).transpose(1, 0, 2)[:, ::-1]  # a quarter to the right
    assert (mine == decode(np.ascontiguousarray(upright), Look(16, 3))).all()
    assert [note for note in data.notes if "EXIF" in note] == [
        "1 of 2 images of the test split: turned as EXIF says (0)"
    ]


def test_pairs_of_images_are_no_samples_of_a_class(tmp_path, monkeypatch):
    class Pairs(list):  # as LFWPairs, whose files torchvision identifies by their MD5
        def __init__(self, root: str, split: str) -> None:
            super().__init__([0, 1])
            self.targets = [0, 1]
            self.data = [(f"{root}/a.jpg", f"{root}/b.jpg"), (f"{root}/c.jpg", f"{root}/d.jpg")]

    monkeypatch.setattr(torchvision.datasets, "LFWPairs", Pairs)
    lines = f"kind: torchvision\nname: LFWPairs\nroot: {tmp_path}\nheld_out: 1\nsize: 16"
    with pytest.raises(ConfigError, match="torchvision does not say which files its images are in"):
        open_data(spec_of(lines, "classes: [other, same]"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "CIFAR10",
            r"data\.root: CIFAR10 is not in .*soupray does not download it. Run: python -c",
        ),
        ("CIFAR11", "torchvision has no data set of this name"),
        ("ImageFolder", "torchvision has no data set of this name with a train"),
    ],
)
def test_what_torchvision_does_not_have_is_named(tmp_path, name, said):
    lines = f"kind: torchvision\nname: {name}\nroot: {tmp_path}/none\nheld_out: 3\nsize: 16"
    with pytest.raises(ConfigError, match=said):
        open_data(spec_of(lines), tmp_path / "cache")
    assert not (tmp_path / "none").exists()


def test_a_data_set_of_hugging_face_on_disk(tmp_path):
    images = [{"bytes": encoded(pixels(i)), "path": None} for i in range(13)]
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee", "cat"])}
    )

    def part(rows):
        columns = {"picture": [images[i] for i in rows], "kind": [i % 3 for i in rows]}
        return datasets.Dataset.from_dict(columns, features=features)

    both = datasets.DatasetDict({"train": part(range(9)), "validation": part(range(9, 13))})
    both.save_to_disk(tmp_path / "set")
    lines = f"""
        kind: huggingface
        path: {tmp_path}/set
        test: validation
        image: picture
        label: kind
        held_out: 3
        size: 16"""
    data = open_data(spec_of(lines), tmp_path / "cache")
    assert [s.size for s in data.splits] == [6, 3, 4]
    stored, labels = data.samples(data.split("test"))
    assert labels.tolist() == [0, 1, 2, 0]
    assert (stored[2] == decode(images[11]["bytes"], Look(16, 3))).all()
    turned = open_data(spec_of(lines, "classes: [Cat, ant, BEE]"), tmp_path / "cache")
    assert turned.samples(turned.split("test"))[1].tolist() == [1, 2, 0, 1]
    for wrong, said in (
        (("image: picture", "image: pic"), "no column 'pic'; it has picture, kind"),
        (("test: validation", "test: test"), "no split 'test'; it has train, validation"),
        (
            ("label: kind", "label: picture"),
            "column 'picture' of .* holds neither class names nor class num",
        ),
        ((f"{tmp_path}/set", f"{tmp_path}"), "is no folder that datasets.save_to_disk wrote"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_data(spec_of(lines.replace(*wrong)), tmp_path / "cache")


def test_labels_of_hugging_face_may_be_texts_and_are_all_there(tmp_path):
    images = [{"bytes": encoded(pixels(i)), "path": None} for i in range(12)]
    names = ["bee", "cat", "ant"] * 4

    def saved(labels, folder):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("string" if labels else "int64")}
        )
        columns = {"image": images, "label": labels or [-1, *[0, 1, 2] * 3, 0, 1]}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
        return f"kind: huggingface\npath: {folder}\ntest: 3\nheld_out: 3\nsize: 16"

    data = open_data(spec_of(saved(names, tmp_path / "texts")), tmp_path / "cache")
    for split in data.splits:
        found = [names[int(i)] for i in data.ids(split)]
        assert [("ant", "bee", "cat")[k] for k in data.samples(split)[1]] == found
    with pytest.raises(ConfigError, match="1 of 12 samples have no label, the first in row 0"):
        open_data(spec_of(saved(None, tmp_path / "gaps")), tmp_path / "cache")


# Beyond data


def test_training_from_mapped_and_from_streamed_images_is_bit_equal(tree, tmp_path):
    from soupray.core.hyperparameters import Hyperparameters
    from soupray.tasks import task_of
    from soupray.training.loop import trained
    from soupray.training.start import Start

    torch.set_num_threads(1)
    spec = folder_spec(tree)
    task = task_of(spec.task)
    hparams = Hyperparameters(**spec.init.trained.numbers())
    torch.manual_seed(0)
    start = Start(weights=task.init(), seed=0, device="cpu")
    first, second = (
        trained(task, open_data(folder_spec(tree, f"keep: {keep}"), tmp_path), hparams, start)
        for keep in ("mapped", "stream")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], start.weights["head.weight"])


def test_a_plan_opens_no_image(tmp_path):
    """A dry run on a million images must not decode them: these are none."""
    for name in ("ant", "bee", "cat"):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / part / name / f"{i}.jpg").touch()
    assert [size for _, _, size in planned(folder_spec(tmp_path)).sizes] == [6, 3, 9]
