"""Texts in CSV, TSV and JSON lines: who gets which, and one message for every mistake."""

import numpy as np
import pytest
from tiny_text import CLASSES, texts, tiny_text, write_texts

from soupray.core.errors import ConfigError
from soupray.core.texts import cut, pack, unpack
from soupray.data.cache import open_data
from soupray.spec.tables import TextSpec


@pytest.fixture
def folder(tmp_path):
    write_texts(tmp_path)
    return tmp_path


def opened(folder, *edits):
    return open_data(tiny_text(folder, *edits), folder / "cache")


def read(data, name) -> tuple[list[str], list[int]]:
    rows, labels = data.samples(data.split(name))
    return unpack(np.asarray(rows)), labels.tolist()


def test_texts_come_back_as_they_were():
    given = ["plain", "", "zwölf Boxkämpfer", "日本語", "\x00 inside"]
    rows = pack(given)
    assert rows.dtype == np.uint8
    assert rows.shape == (5, 18)  # "zwölf Boxkämpfer" has 16 characters, two of them of two bytes
    assert unpack(rows) == given
    assert cut("日本", 5) == "日"  # of three bytes each
    assert cut("short", 99) == "short"


def test_every_text_is_in_one_split_with_its_label(folder):
    data = opened(folder)
    assert [(s.name, s.role, s.size) for s in data.splits] == [
        ("train", "train", 48),
        ("held_out", "held_out", 12),
        ("test", "test", 30),
        ("short", "shift", 8),
    ]
    train, held_out = read(data, "train"), read(data, "held_out")
    assert sorted(train[0] + held_out[0]) == sorted(t for of in CLASSES for t in texts(of, 30))
    assert sorted(held_out[1]) == [0] * 6 + [1] * 6
    for found, labels in (train, held_out, read(data, "test")):
        for text, label in zip(found, labels, strict=True):
            assert text.split()[-1] in list(CLASSES.values())[label]
    assert read(data, "short") == (
        [w for words in CLASSES.values() for w in words],
        [0] * 4 + [1] * 4,
    )


def test_test_and_rank_samples_may_come_from_the_train_file(folder):
    data = opened(
        folder,
        (f"test: {folder}/test.tsv", "test: 10"),
        ("held_out: 12", "held_out: {select: 8, rank: 4}"),
    )
    sizes = {s.name: s.size for s in data.splits}
    assert sizes == {"train": 38, "held_out": 8, "rank": 4, "test": 10, "short": 8}
    found = [t for name in ("train", "held_out", "rank", "test") for t in read(data, name)[0]]
    assert len(set(found)) == len(found) == 60


def test_another_content_is_another_split(folder):
    before = opened(folder).split("test").digest
    path = folder / "test.tsv"
    path.write_text(path.read_text().replace("salt", "brine", 1))
    assert opened(folder).split("test").digest != before


def test_a_quoted_text_with_lines_and_a_separator_is_one_sample(folder):
    with (folder / "train.csv").open("a", newline="") as file:
        file.write('food,"bread, said ""he""\nand\u2028soup"\n')
    assert 'bread, said "he"\nand\u2028soup' in read(opened(folder), "train")[0]


def test_what_is_too_long_fails_or_is_cut(folder):
    lines = [f'{{"text": "{t}", "label": "food"}}' for t in ("bread", "x" * 41, "ä" * 21)]
    (folder / "short.jsonl").write_text("\n".join(lines))
    limit = ("held_out: 12", "held_out: 12\n  max_bytes: 40")
    with pytest.raises(ConfigError) as error:
        opened(folder, limit)
    assert "2 of 3 texts are longer than data.max_bytes = 40, the first at " in str(error.value)
    assert "short.jsonl:2 with 41 bytes. Write a larger max_bytes, or on_long: cut." in str(
        error.value
    )
    data = opened(folder, (limit[0], limit[1] + "\n  on_long: cut"))
    assert read(data, "short")[0] == ["bread", "x" * 40, "ä" * 20]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", "label,text\nfruit,bread\n", "train.csv:2: the label 'fruit' is not one of"),
        ("train.csv", "label,text\nfood,bread\n", "need 6 texts of class 'food' and leave none"),
        ("train.csv", "label,texts\nfood,a\n", "train.csv:2: no text in column 'text'. Its colu"),
        ("train.csv", "label,text\nfood\n", "train.csv:2: 1 cells in a table of 2 columns"),
        ("train.csv", "label,text\nfood,   \n", "train.csv:2: the text is empty"),
        ("train.csv", 'label,text\nfood,"a\n', "in the row of line 2: unexpected end of data"),
        ("train.csv", "", "train.csv: there is no sample in it."),
        ("short.jsonl", '{"text": "a"}\n', "short.jsonl:1: no text in column 'label'"),
        (
            "short.jsonl",
            '{"text": 3, "label": "food"}\n',
            "short.jsonl:1: no text in column 'text'",
        ),
        (
            "short.jsonl",
            "\n[1]\n",
            "short.jsonl:2: a line must be a JSON object with named columns, not",
        ),
        ("short.jsonl", "{'text'}\n", "short.jsonl:1: not JSON: "),
    ],
)
def test_a_broken_file_is_named_with_the_line(folder, name, content, said):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError) as error:
        opened(folder)
    assert said in str(error.value)


def test_rows_that_cannot_be_read_are_left_out_if_the_spec_says_so(folder):
    whole = read(opened(folder), "train")[0]
    with (folder / "train.csv").open("a") as file:
        file.write("fruit,bread\nfood\nfood,  \n")
    (folder / "short.jsonl").write_text(
        '{"text": "soup", "label": "food"}\n{"text": "a"}\n[1]\n{\'text\'}\n'
    )
    data = opened(folder, ("held_out: 12", "held_out: 12\n  on_error: skip"))
    assert read(data, "train")[0] == whole  # 48 of 48 + 12 rows; three are left out
    assert read(data, "short")[0] == ["soup"]
    train, short = (next(n for n in data.notes if f"{name} are left out" in n) for name in
                    ("train.csv", "short.jsonl"))  # fmt: skip
    assert train.startswith("3 of 63 rows of ")
    assert short.startswith("3 of 4 rows of ")
    for said in (
        "train.csv:62: the label 'fruit' is not one of task.classes: ",
        "train.csv:63: 1 cells in a table of 2 columns",
        "train.csv:64: the text is empty",
    ):
        assert said in train
    for said in ("short.jsonl:2: no text in column 'label'", "short.jsonl:4: not JSON"):
        assert said in short


def test_what_is_left_out_is_never_all_and_never_behind_a_quote(folder):
    skip = ("held_out: 12", "held_out: 12\n  on_error: skip")
    (folder / "train.csv").write_text("label,texts\nfood,a\nfood,b\n")
    with pytest.raises(ConfigError, match=r"no sample in it. The first row: .*csv:2: no text in"):
        opened(folder, skip)
    (folder / "train.csv").write_text('label,text\nfood,"a\nfood,b\n')
    with pytest.raises(ConfigError, match="in the row of line 2: unexpected end of data"):
        opened(folder, skip)


def test_files_that_are_not_there_or_not_text(folder):
    with pytest.raises(ConfigError, match=r"gone\.csv: cannot be read: No such file"):
        opened(folder, ("train.csv", "gone.csv"))
    (folder / "train.xls").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"one of \.csv, \.tsv, \.jsonl, \.ndjson"):
        opened(folder, ("train.csv", "train.xls"))
    (folder / "train.csv").write_bytes("label,text\nfood,Käse\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"train\.csv: not UTF-8 text"):
        opened(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: text", "kind: texts", "'texts' found using 'kind' does not match"),
        ("short: ", "test: ", "data.shifts: a shift cannot"),
        ("lr: 5e-3", "rotation: 5, lr: 5e-3", "rotation is for images; leave it out"),
        (
            "search:",
            "init: {trained: {lr: 1e-3, epochs: 1, mixup: 0.2}}\nsearch:",
            "init: mixup is for images; leave it out.",
        ),
        ('templates: ["about {}"]', "", "init: 'zero_shot' is not allowed: a transformers model"),
        ("max_tokens: 8", "max_tokens: 8\n  pooling: own", "leave `templates` out and write"),
        ("max_tokens: 8", "normalise: false", "a zero-shot head compares directions"),
        ("about {}", "about", "the template 'about' needs one {}"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(folder, old, new, said):
    with pytest.raises(ConfigError) as error:
        tiny_text(folder, (old, new))
    assert said in str(error.value)


def test_images_for_a_text_model_and_texts_for_an_image_model():
    from shared import demo

    with pytest.raises(ConfigError, match="a open_clip model cannot read data of kind text"):
        demo(
            ("kind: digits ", "kind: text "),
            ("train_per_class: 20", "train: a.csv\n  test: 20"),
            ("shifts: [inverted, rotated, noise, low_contrast, thickened]", ""),
        )


def test_the_defaults():
    spec = TextSpec(kind="text", train="a.csv", test="b.csv", held_out=5)
    assert (spec.text_column, spec.label_column, spec.max_bytes, spec.on_long) == (
        "text",
        "label",
        2000,
        "fail",
    )
