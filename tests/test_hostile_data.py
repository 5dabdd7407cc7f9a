"""Data sets as they come: links, pipes, odd names, bombs and cut files. Nothing vanishes."""

import gzip
import io
import json
import os
import resource
import socket
import struct
import tarfile

import datasets
import numpy as np
import pytest
from conftest import inside
from idx_files import idx_bytes
from open_clip import IMAGENET_CLASSNAMES
from pictures import encoded, pixels, spec_of, write_folders, write_image, write_shard
from tiny_text import tiny_text, write_texts

from soupray.core.errors import ConfigError
from soupray.data.cache import open_data, planned
from soupray.data.folders import list_folders, walked
from soupray.data.idx import read_idx
from soupray.data.natural import list_shift
from soupray.data.sets import fingerprints
from soupray.data.shards import list_shards, shards
from soupray.spec.data import NaturalShift

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN = {"ant": 6, "bee": 7, "cat": 8}


def folder_spec(root, *more: str):
    lines = [
        "kind: folder",
        f"train: {root}/train",
        "test: 3",
        "held_out: 3",
        "size: 16",
        *more,
    ]
    return spec_of("\n".join(lines), None)


@pytest.fixture
def tree(tmp_path):
    write_folders(tmp_path / "train", TRAIN)
    return tmp_path


def sizes(data) -> int:
    return sum(split.size for split in data.splits)


# Folders


def test_what_is_no_image_by_its_ending_is_said_by_class(tree):
    for i in range(5):
        (tree / "train" / "cat" / f"{i}.heic").write_bytes(b"x")
    (tree / "train" / "cat" / "0.GIF").write_bytes(b"x")
    (tree / "train" / "bee" / "list").write_bytes(b"x")
    (tree / "train" / "README.txt").write_bytes(b"x")
    (tree / "train" / ".hidden").write_bytes(b"x")
    data = open_data(folder_spec(tree), tree / "cache")
    assert sizes(data) == 21
    assert data.notes == (
        f"data.train: 7 of 28 files in {tree}/train are left out, because images end in .jpg, "
        ".jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp: cat: 5 .heic, 1 .gif; bee: 1 without "
        "an ending",
        f"data.train: 1 files in {tree}/train are in no folder of a class and are left out, like "
        "README.txt",
    )
    assert planned(folder_spec(tree)).notes == data.notes


def test_a_class_without_images_says_what_it_has(tree):
    (tree / "train" / "dog").mkdir()
    (tree / "train" / "dog" / "1.heic").touch()
    with pytest.raises(ConfigError, match=r"dog has no images \(\.jpg.*\) but 1 \.heic\. Fill it"):
        open_data(folder_spec(tree), tree / "cache")


def test_a_link_that_goes_in_circles_is_not_followed_and_is_said(tree):
    (tree / "train" / "cat" / "again").symlink_to(tree / "train" / "cat")
    (tree / "train" / "cat" / "up").symlink_to(tree)
    (tree / "train" / "cat" / "self").symlink_to("self")
    (tree / "more").mkdir()
    write_image(tree / "more" / "x.jpg", 999)
    (tree / "train" / "cat" / "elsewhere").symlink_to(tree / "more")
    data = open_data(folder_spec(tree), tree / "cache")
    assert sizes(data) == 22
    assert any("cat/elsewhere/x.jpg" in data.ids(split) for split in data.splits)
    assert "cat: 2 links to a folder that contains them, 1 without an ending" in data.notes[0]


def test_two_links_in_each_of_twenty_folders_are_refused(tmp_path, monkeypatch):
    """A million paths. Linux follows 40 links in one, and counts some twice on a busy machine."""
    monkeypatch.setattr("soupray.data.folders.MOST_FOLDERS", 1000)
    for i in range(20):
        (tmp_path / "z" / str(i)).mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "z" / str(i) / name).symlink_to(tmp_path / "z" / str(i + 1))
    (tmp_path / "z" / "20").mkdir()
    with pytest.raises(OSError, match="more than 1000 folders"):
        list(walked(tmp_path / "z" / "0"))
    with pytest.raises(ConfigError, match="more than 1000 folders, many by links"):
        list_folders(tmp_path / "z", {"0": 0}, "data.train")


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def nothing(path):
    path.symlink_to(path.parent / "gone.jpg")


def served(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def latin(path):
    os.rename(  # noqa: PTH104 - the name is bytes
        path.with_name("0.jpg"), os.fsencode(path.parent) + b"/caf\xe9.jpg"
    )


def two_lines(path):
    path.with_name("0.jpg").rename(path.with_name("a\nb.jpg"))


def escape(path):
    path.with_name("a\x1b[31mb.jpg").write_bytes(b"x")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (fifo, "ant/x.jpg ([Errno 22] not a regular file"),
        (device, "ant/x.jpg ([Errno 22] not a regular file"),
        (nothing, "ant/x.jpg ([Errno 2] No such file"),
        (served, "ant/x.jpg ([Errno 6] No such device"),
        (latin, r"'ant/caf\udce9.jpg' (its name is not one line of text in UTF-8)"),
        (two_lines, r"'ant/a\nb.jpg' (its name is not one line of text in UTF-8)"),
        (escape, r"'ant/a\x1b[31mb.jpg' (not an image of a known format"),
    ],
)
@pytest.mark.parametrize("keep", ["mapped", "stream"])
def test_what_is_no_file_or_no_name_is_an_image_that_cannot_be_read(tmp_path, make, said, keep):
    short = tmp_path.parent.parent / tmp_path.name[-6:]  # a socket's path has 107 bytes at most
    short.symlink_to(tmp_path)
    try:
        write_folders(tmp_path / "train", TRAIN)
        make(short / "train" / "ant" / "x.jpg")
    finally:
        short.unlink()
    with pytest.raises(ConfigError) as error:
        open_data(folder_spec(tmp_path, f"keep: {keep}"), tmp_path / "cache")
    assert str(error.value).startswith("1 of ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    str(error.value).encode()
    data = open_data(folder_spec(tmp_path, f"keep: {keep}", "on_error: skip"), tmp_path / "cache")
    renamed = make in (latin, two_lines)
    assert sizes(data) == 21 - renamed
    assert said in data.notes[0]
    for split in data.splits:
        assert len(data.ids(split)) == split.size


def test_names_with_other_line_ends_stay_one_id(tree):
    name = "a\u2028b\x0cc\x85 d.jpg"
    (tree / "train" / "ant" / "0.jpg").rename(tree / "train" / "ant" / name)
    data = open_data(folder_spec(tree), tree / "cache")
    ids = [i for split in data.splits for i in data.ids(split)]
    assert len(ids) == 21
    assert f"ant/{name}" in ids


def test_a_class_whose_name_is_not_text_is_refused(tree):
    os.mkdir(os.fsencode(tree / "train") + b"/caf\xe9")  # noqa: PTH102 - the name is bytes
    with pytest.raises(ConfigError, match=r"the folder 'caf\\udce9' cannot name a class"):
        folder_spec(tree)


def test_converted_pictures_are_counted_for_each_split_and_have_another_digest(tree):
    def digests(keep: str) -> dict[str, str]:
        data = open_data(folder_spec(tree, f"keep: {keep}"), tree / "cache")
        return {split.name: split.digest for split in data.splits}

    before = digests("mapped"), digests("stream")
    seed = {name: 100 * k for k, name in enumerate(TRAIN)}
    opacity = np.full((20, 24), 255, np.uint8)
    for name in TRAIN:
        for path in sorted((tree / "train" / name).iterdir()):
            array = np.dstack([pixels(seed[name] + int(path.stem)), opacity])
            path.with_suffix(".png").write_bytes(encoded(array, "PNG"))
            path.unlink()
    opaque = digests("mapped"), digests("stream")
    assert open_data(folder_spec(tree), tree / "cache").notes == ()
    for name in TRAIN:
        path = tree / "train" / name / "3.png"
        path.write_bytes(encoded(np.dstack([pixels(seed[name] + 3), opacity - 1]), "PNG"))
    data = open_data(folder_spec(tree), tree / "cache")
    assert sum(int(note.split()[0]) for note in data.notes) == 3
    for note in data.notes:
        assert "split: transparency laid over white (" in note
    after = digests("mapped"), digests("stream")
    assert all(set(a.values()) != set(b.values()) for a, b in zip(opaque, after, strict=True))
    assert before != opaque


# Shards


def shard_of(path, count: int = 4, key: str = "{:04d}") -> None:
    found = {}
    for i in range(count):
        found[f"{key.format(i)}.jpg"] = encoded(pixels(i))
        found[f"{key.format(i)}.cls"] = str(i % 3).encode()
    write_shard(path, found)


def add(path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "a") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_key_that_is_there_twice_in_a_row_is_refused(tmp_path):
    shard = tmp_path / "s.tar"
    shard_of(shard, 2)
    add(shard, ("0001.jpg", encoded(pixels(7))), ("0001.cls", b"2"))
    with pytest.raises(ConfigError, match=r"s\.tar: the key '0001' has \.jpg twice"):
        list_shards(str(shard), "data.train")


def test_every_cut_of_a_shard_is_noticed(tmp_path):
    shard_of(tmp_path / "whole.tar", 3)
    whole = (tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for length in range(0, end, 512):
        cut.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"cut\.tar: "):
            list_shards(str(cut), "data.train")
    for length in (end + 512, end + 1024, len(whole)):
        cut.write_bytes(whole[:length])
        assert len(list_shards(str(cut), "data.train").ids) == 3


def test_a_damaged_header_and_joined_shards_are_noticed(tmp_path):
    shard_of(tmp_path / "whole.tar", 3)
    whole = bytearray((tmp_path / "whole.tar").read_bytes())
    with tarfile.open(tmp_path / "whole.tar") as tar:
        third = tar.getmembers()[2].offset
    (tmp_path / "joined.tar").write_bytes(whole + whole)
    with pytest.raises(ConfigError, match="bytes follow the end of the tar file, as when files"):
        list_shards(f"{tmp_path}/joined.tar", "data.train")
    whole[third] ^= 1
    (tmp_path / "whole.tar").write_bytes(whole)
    with pytest.raises(ConfigError, match=f"no header and no end at byte {third}: the shard was"):
        list_shards(f"{tmp_path}/whole.tar", "data.train")


def test_links_in_a_shard_are_refused(tmp_path):
    shard = tmp_path / "s.tar"
    shard_of(shard, 2)
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        shard_of(shard, 2)
        with tarfile.open(shard, "a") as tar:
            info = tarfile.TarInfo("9.jpg")
            info.type, info.linkname = kind, "0001.jpg"
            tar.addfile(info)
        with pytest.raises(ConfigError, match=r"'9\.jpg' is not a plain file but a link, a device"):
            list_shards(str(shard), "data.train")


def test_a_negative_size_does_not_lead_back_for_ever(tmp_path):
    shard = tmp_path / "s.tar"
    shard_of(shard, 2)
    info = tarfile.TarInfo("9.jpg")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    shard.write_bytes(whole[:end] + bytes(block) + bytes(1024))
    with pytest.raises(ConfigError, match="not a plain tar file"):
        list_shards(str(shard), "data.train")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("9.jpg", b"x")], "sample '9' has no .cls"),
        ([("9.gif", b"x"), ("9.cls", b"0")], "sample '9' has no image (.jpg, .jpeg, .png, .webp)"),
        ([("9.jpg", b"x"), ("9.png", b"x"), ("9.cls", b"0")], "has 2 images, .jpg and .png"),
        ([("9.jpg", b"x"), ("9.cls", b"cat")], "has the .cls 'cat', which is not a class"),
        ([("9.jpg", b"x"), ("9.cls", b"-1")], "has the .cls '-1', which is not a class"),
        ([("9.jpg", b"x"), ("9.cls", b"9" * 30)], "has the .cls '999999999999999999999999999999'"),
        ([("9.jpg", b"x"), ("9.cls", b"9" * 5000)], "has a .cls of 5000 bytes, which is no class"),
    ],
)
def test_a_sample_that_is_not_whole_fails_or_is_left_out_and_said(tmp_path, members, said):
    shard_of(tmp_path / "s.tar", 12)
    add(tmp_path / "s.tar", *members)
    lines = f"kind: webdataset\ntrain: {tmp_path}/s.tar\ntest: 3\nheld_out: 3\nsize: 16"
    with pytest.raises(ConfigError) as error:
        open_data(spec_of(lines), tmp_path / "cache")
    assert said in str(error.value)
    assert str(error.value).endswith("Mend it, or write data.on_error: skip.")
    data = open_data(spec_of(f"{lines}\non_error: skip"), tmp_path / "cache")
    assert sizes(data) == 12
    assert data.notes[0].startswith("data.train: 1 of 13 samples left out: ")
    assert said in data.notes[0]


def test_a_key_that_is_no_text_is_an_image_that_cannot_be_read(tmp_path):
    shard_of(tmp_path / "s.tar", 12)
    add(tmp_path / "s.tar", ("caf\udce9.jpg", encoded(pixels(99))), ("caf\udce9.cls", b"0"))
    lines = f"kind: webdataset\ntrain: {tmp_path}/s.tar\ntest: 3\nheld_out: 3\nsize: 16"
    with pytest.raises(ConfigError, match=r"its name is not one line of text in UTF-8"):
        open_data(spec_of(lines), tmp_path / "cache")
    assert sizes(open_data(spec_of(f"{lines}\non_error: skip"), tmp_path / "cache")) == 12


def test_a_label_of_a_million_million_classes_is_refused_before_it_is_counted(tmp_path):
    shard_of(tmp_path / "s.tar", 12)
    add(tmp_path / "s.tar", ("x.jpg", encoded(pixels(99))), ("x.cls", b"1000000000000"))
    lines = f"kind: webdataset\ntrain: {tmp_path}/s.tar\ntest: 3\nheld_out: 3\nsize: 16"
    with pytest.raises(ConfigError, match="a label is 1000000000000; allowed is 0 to 999999"):
        open_data(spec_of(lines), tmp_path / "cache")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("s-{0..1000000000}.tar", "there is no shard .*s-1.tar'. Write a path with"),
        ("s-{00000..99999999999999999}.tar", "there is no shard .*s-00000.tar"),
        ("s-{9..0}.tar", "the numbers of .* go down"),
        ("s-{0..99999999999999999999999}.tar", "there is no shard"),
        ("**.tar", "is no pattern: .*entire path component"),
        ("**", "there is no shard"),
        ("a\0b", "has a control character or a NUL"),
        ("~nosuchuser\0", "has a control character or a NUL"),
        ("a\x1b[31mb", "has a control character or a NUL"),
        ("~nosuchuser/x.tar", "does not name a user of this machine"),
        ("", "there is no shard|is no pattern"),
        ("/", "there is no shard|is no pattern"),
        ("..", "there is no shard|is no pattern"),
        ("x" * 5000, "is longer than a path of Linux: 255 bytes a name, 4000 in all"),
        ("{0..9}" + "x" * 300, "is longer than a path of Linux"),
        ("x/" * 3000, "is longer than a path of Linux"),
        ("\n", r"'\\n' has a control character or a NUL"),
    ],
)
def test_odd_patterns_end_in_one_line(tmp_path, monkeypatch, pattern, said):
    monkeypatch.chdir(tmp_path)
    shard_of(tmp_path / "s-0.tar")
    with pytest.raises(ConfigError, match=said) as error:
        shards(pattern, "data.train")
    assert "\n" not in str(error.value)


# Tables


@pytest.fixture
def texts(tmp_path):
    write_texts(tmp_path)
    return tmp_path


def opened(folder, *edits):
    return open_data(tiny_text(folder, *edits), folder / "cache")


SWALLOWS = (
    'label,text\nfood,"the bread\n'
    + "".join(f"food,the soup {i}\n" for i in range(17))
    + 'weather,rain"\n'
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", "label,text\nfood,bread, and soup\n", "train.csv:2: 3 cells in a table of 2"),
        ("train.csv", "label,text\n\nfood,a\nfood,b,\n", "train.csv:4: 3 cells in a table of 2"),
        ("train.csv", "label,text,text\nfood,a,b\n", "train.csv:1: 2 columns are called 'text'"),
        ("train.csv", "label,label,text\nfood,food,b\n", "2 columns are called 'label'"),
        ("train.csv", SWALLOWS, "train.csv:2: a quoted text goes on for 18 more lines, and one"),
        ("test.tsv", SWALLOWS.replace(",", "\t"), "test.tsv:2: a quoted text goes on for 18 more"),
        ("test.tsv", 'label\ttext\nfood\t"bread" and soup\n', "test.tsv: in the row of line 2: "),
        ("short.jsonl", '{"text": "a", "label": "food", "text": "b"}', "'text' is there twice"),
        ("short.jsonl", '{"text": "\\ud800", "label": "food"}', "half of a surrogate pair"),
        ("short.jsonl", '{"\\udfff": 1, "text": "a", "label": "food"}', "half of a surrogate pair"),
        ("short.jsonl", "[" * 100_000, "short.jsonl:1: not JSON: too many levels"),
        ("short.jsonl", '{"a":' * 100_000, "short.jsonl:1: not JSON: too many levels"),
        ("short.jsonl", f'{{"n": {"9" * 5000}}}', "short.jsonl:1: not JSON: Exceeds the limit"),
        ("train.csv", f'label,text\nfood,"{"x" * 200_000}"\n', "field larger than field limit"),
    ],
)
def test_a_row_that_would_be_lost_is_named(texts, name, content, said):
    (texts / name).write_text(content)
    with pytest.raises(ConfigError) as error:
        opened(texts)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quoted_text_of_several_lines_stays_one_text(texts):
    with (texts / "train.csv").open("a", newline="") as file:
        file.write('food,"bread,\nand soup, and salt"\n\nfood,"the ""last"" soup"\n')
    data = opened(texts)
    assert sum(data.split(name).size for name in ("train", "held_out")) == 62


def test_equal_columns_that_nobody_reads_are_fine(texts):
    (texts / "short.jsonl").write_text('{"text": "a", "label": "food", "n": {"x": 1e999}}\n')
    rows = (texts / "test.tsv").read_text().splitlines()
    (texts / "test.tsv").write_text("\n".join(f"{row}\tn\tn" for row in rows) + "\n")
    assert opened(texts).split("test").size == 30


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_table_that_never_ends_is_not_read(texts, kind):
    path = texts / "train.csv"
    path.unlink()
    {"fifo": os.mkfifo, "device": device, "folder": os.mkdir}[kind](path)
    with pytest.raises(
        ConfigError, match=r"train\.csv: cannot be read: (not a regular|a folder, not a file)"
    ):
        opened(texts)


# IDX and arrays


def test_a_small_gz_with_much_in_it_is_read_as_far_as_its_header_says(tmp_path):
    path = tmp_path / "x.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx_bytes(np.ones((2, 3, 4))))
        for _ in range(400):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="truncated or corrupt: more than 40 bytes"):
        read_idx(path, dimensions=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (100_000, 1000, 1000)])
def test_a_header_that_promises_too_much_is_refused(tmp_path, shape):
    path = tmp_path / "x"
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape) + b"x")
    with pytest.raises(ConfigError, match=r"its header says .* more than 2147483648 bytes"):
        read_idx(path, dimensions=3)


def npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }") + b"cos\nsystem\n",
        npy("(" * 300 + ")" * 300),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': ('a',), }"),
        npy("[]"),
    ],
)
def test_an_array_that_is_none_is_refused(tree, content):
    (tree / "ids.npy").write_bytes(content)
    spec = spec_of(
        f"kind: folder\ntrain: {tree}/train\ntest: 3\nsize: 16\nheld_out: {{ids: {tree}/ids.npy}}",
        None,
    )
    with pytest.raises(ConfigError, match=r"ids\.npy: cannot be read as an array") as error:
        open_data(spec, tree / "cache")
    assert "\n" not in str(error.value)


def test_a_list_of_all_samples_leaves_none_to_train_on(tree):
    ids = [f"{name}/{i}.jpg" for name, count in TRAIN.items() for i in range(count)]
    (tree / "ids.txt").write_text("\n".join(ids))
    lines = (
        f"kind: folder\ntrain: {tree}/train\ntest: 3\nsize: 16\nheld_out: {{ids: {tree}/ids.txt}}"
    )
    with pytest.raises(ConfigError, match=r"lists all 21 samples and leaves none to train on"):
        open_data(spec_of(lines, None), tree / "cache")


@pytest.mark.parametrize("labels", ["texts", "names", "numbers"])
def test_a_data_set_of_hugging_face_without_rows_or_images(tree, labels):
    kind = {
        "texts": datasets.Value("string"),
        "names": datasets.ClassLabel(names=["ant", "bee", "cat"]),
        "numbers": datasets.Value("int64"),
    }[labels]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    lines = f"kind: huggingface\npath: {tree}/set\ntest: 3\nheld_out: 3\nsize: 16"
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
    datasets.DatasetDict({"train": empty}).save_to_disk(tree / "set")
    with pytest.raises(ConfigError):
        open_data(spec_of(lines), tree / "cache")
    values = ["ant", "bee", "cat"] if labels == "texts" else [0, 1, 2]
    images = [{"bytes": encoded(pixels(i)), "path": None} for i in range(14)]
    images += [None, {"bytes": b"", "path": "gone.jpg"}]
    rows = {"image": images, "label": [values[i % 3] for i in range(16)]}
    some = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": some}).save_to_disk(tree / "more")
    lines = lines.replace(f"{tree}/set", f"{tree}/more")
    with pytest.raises(ConfigError, match="the row has no image"):
        open_data(spec_of(lines), tree / "cache")
    assert sizes(open_data(spec_of(f"{lines}\non_error: skip"), tree / "cache")) == 14


def test_an_archive_of_arrays_is_no_array(tree):
    np.savez(tree / "ids.npz", np.ones(21))
    (tree / "ids.npz").rename(tree / "ids.npy")
    spec = spec_of(
        f"kind: folder\ntrain: {tree}/train\ntest: 3\nsize: 16\nheld_out: {{ids: {tree}/ids.npy}}",
        None,
    )
    with pytest.raises(ConfigError, match="cannot be read as an array"):
        open_data(spec, tree / "cache")


# Shifts


@pytest.mark.parametrize("folder", ["imagenet_v2", "objectnet", "stl10", "cifar10_1"])
def test_an_empty_or_odd_folder_of_a_shift_ends_in_one_line(tree, folder):
    root = tree / "shift"
    (root / "mappings").mkdir(parents=True)
    (root / "test_X.bin").touch()
    (root / "test_y.bin").touch()
    names = CIFAR if folder in ("stl10", "cifar10_1") else IMAGENET_CLASSNAMES
    for name, content in (
        ("folder_to_objectnet_label.json", [1]),
        ("objectnet_to_imagenet_1k.json", {"a": 3}),
        ("pytorch_to_imagenet_2012_id.json", {"0": "x"}),
    ):
        (root / "mappings" / name).write_text(json.dumps(content))
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("a\n")
    for version in ("data", "labels"):
        (root / f"cifar10.1_v6_{version}.npy").write_bytes(npy("[]"))
    with pytest.raises(ConfigError) as error:
        list_shift(NaturalShift(kind=folder, root=str(root)), names)
    assert "\n" not in str(error.value)


# The command line


def test_hostile_data_end_with_status_2_and_one_line(tree):
    (tree / "train" / "ant" / "shut.jpg").symlink_to("/dev/zero")
    path = tree / "x.yaml"
    path.write_text(
        f"""
name: x
task: {{kind: timm, model: resnet10t, size: 16, mean: [0.5, 0.5, 0.5], std: [1.0, 1.0, 1.0]}}
data: {{kind: folder, train: "{tree}/train", test: 3, held_out: 3, size: 16}}
init: {{trained: {{lr: 1e-3, epochs: 1}}}}
anchor: init
search: {{trials: 1, space: {{lr: 1e-3, epochs: 1}}}}
storage: "file://{tree}/store"
tracking: "off"
recipes: {{}}
"""
    )
    (tree / "train" / "ant" / "y.heic").touch()
    done = inside("sweep", path, "--dry-run")
    assert "left out" in done.stderr + done.stdout
    fingerprints(folder_spec(tree).data)  # reads no device
