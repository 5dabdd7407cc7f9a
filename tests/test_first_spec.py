"""`soupray init`: a spec for data of one's own, whose dry run passes at the first attempt."""

import csv

import numpy as np
import pytest
from conftest import ROOT, inside
from PIL import Image
from tiny_text import texts, write_model

from soupray.core.errors import ConfigError
from soupray.data.cache import planned
from soupray.operations.first_spec import images_spec, texts_spec
from soupray.spec.sweep_spec import load


def images(root, counts: dict[str, int], size: int = 12) -> None:
    rng = np.random.default_rng(len(str(root)))
    for name, count in counts.items():
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (size, size + 3, 3)).astype(np.uint8)).save(path)


def table(path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)


def test_folders_of_classes_become_a_clip_with_prompts(tmp_path):
    images(tmp_path / "pets", {"Golden_Retriever": 12, "tabby cat": 10, "o'possum": 8})
    (tmp_path / "pets" / "tabby cat" / "notes.txt").write_text("x")
    spec = tmp_path / "pets.yaml"
    done = inside("init", "pets", "--image-folder", tmp_path / "pets", "--output", spec)
    assert "1 files in" in done.stderr  # the text file
    assert "no images of a class" in done.stderr
    assert "3 classes, 30 samples." in done.stdout
    found = load(spec)
    assert found.task.classes == ("Golden Retriever", "o'possum", "tabby cat")
    assert (found.data.test, found.data.held_out) == (6, 4)
    assert (found.metric, found.data.on_error) == ("accuracy", "fail")
    dry = inside("sweep", spec, "--dry-run", "--home", tmp_path / "home")
    assert "Golden Retriever" in dry.stdout
    again = inside(
        "init", "pets", "--image-folder", tmp_path / "pets", "--output", spec, check=False
    )
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


def test_train_and_val_folders_that_are_uneven_are_ranked_by_balanced_accuracy(tmp_path):
    images(tmp_path / "parts" / "train", {"a": 40, "b": 6})
    images(tmp_path / "parts" / "val", {"a": 9, "b": 5})
    images(tmp_path / "parts" / "extra", {"a": 1})
    spec = tmp_path / "parts.yaml"
    done = inside(
        *("init", "parts", "--image-folder", tmp_path / "parts", "--model", "resnet18.a1_in1k"),
        *("--output", spec),
    )
    assert "the classes are uneven: 6 samples of 'b', 40 of another" in done.stderr
    assert f"extra in {tmp_path / 'parts'}: not used" in done.stderr
    found = load(spec)
    assert (found.metric, found.task.kind) == ("balanced_accuracy", "timm")
    assert found.data.test == str(tmp_path / "parts" / "val")
    assert found.data.held_out == int(0.15 * 46)
    inside("sweep", spec, "--dry-run", "--home", tmp_path / "home")


def test_the_small_clip_in_this_package_brings_its_weights(tmp_path):
    images(tmp_path / "marks", {"one": 12, "two": 12})
    spec = tmp_path / "marks.yaml"
    spec.write_text(images_spec("marks", tmp_path / "marks", "soupray:digits").text)
    found = load(spec)
    assert (found.task.kind, found.task.model) == ("open_clip", "soupray:digits")
    demo = load(ROOT / "sweeps" / "digits.yaml")
    assert found.search.space.lr == demo.search.space.lr  # those of a large CLIP hardly move it
    assert (found.task.pretrained, found.task.classes) == (None, ("one", "two"))
    _, classes, _ = planned(found)
    assert [c.name for c in classes] == ["one", "two"]
    with pytest.raises(ConfigError, match=r"none has no open_clip_config\.json"):
        images_spec("marks", tmp_path / "marks", f"local-dir:{tmp_path}/none")


def test_a_table_of_texts_is_read_by_the_names_of_its_columns(tmp_path):
    rows = [
        [str(k), text, of] for of in ("food", "weather") for k, text in enumerate(texts(of, 30))
    ]
    table(tmp_path / "rev.tsv", [["id", "Review", "Topic"], *rows])
    write_model(tmp_path / "model")
    spec = tmp_path / "rev.yaml"
    where = ("--text-csv", tmp_path / "rev.tsv", "--model", tmp_path / "model")
    inside("init", "rev", *where, "--output", spec)
    found = load(spec)
    assert (found.data.text_column, found.data.label_column) == ("Review", "Topic")
    assert (found.data.test, found.data.held_out) == (12, 9)
    text = spec.read_text().replace("max_tokens: 128", "max_tokens: 16")  # the tiny model's most
    spec.write_text(text)
    inside("sweep", spec, "--dry-run", "--home", tmp_path / "home")


def test_columns_without_usual_names_are_told_apart_by_what_they_hold(tmp_path):
    rows = [[f"a long text, number {k}", "xy"[k % 2]] for k in range(20)]
    table(tmp_path / "t.csv", [["a", "b"], *rows])
    drafted = texts_spec("t", tmp_path / "t.csv", "m")
    assert 'text_column: "a"' in drafted.text
    assert 'label_column: "b"' in drafted.text
    assert drafted.samples == {"x": 10, "y": 10}


def test_data_that_make_no_spec_are_refused_by_name(tmp_path):
    images(tmp_path / "one", {"a": 3})
    table(tmp_path / "ids.csv", [["text", "label"], *([f"t {k}", str(k)] for k in range(9))])
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "x.xlsx").write_text("")
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    for made, said in (
        (lambda: images_spec("n", tmp_path / "none"), "there is no such folder"),
        (lambda: images_spec("n", tmp_path / "one"), "1 folders with images"),
        (lambda: texts_spec("n", tmp_path / "ids.csv"), "'label' has 9 different values in 9 rows"),
        (lambda: texts_spec("n", tmp_path / "empty.csv"), "no rows"),
        (lambda: texts_spec("n", tmp_path / "x.xlsx"), "the ending is one of .csv, .tsv, .jsonl"),
        (lambda: texts_spec("n", tmp_path / "bad.jsonl"), "cannot be read"),
        (lambda: texts_spec("n", tmp_path / "none.csv"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            made()
    images(tmp_path / "mixed", {"a": 3, "b": 3, "test": 3})
    with pytest.raises(ConfigError, match="it has a folder 'test', which is no class, and no"):
        images_spec("n", tmp_path / "mixed")
    (tmp_path / "short.csv").write_text("text,label\n" + "a b,x\nc d,y\n" * 4 + "no label\n")
    with pytest.raises(ConfigError, match=r"1 rows have no 'label', the first is row 9"):
        texts_spec("n", tmp_path / "short.csv")
    images(tmp_path / "two", {"a": 3, "b": 3})
    with pytest.raises(ConfigError, match="'My Pets': the name of a sweep has 1 to 63 lower-case"):
        images_spec("My Pets", tmp_path / "two")
    with pytest.raises(ConfigError, match=r"name the pre-trained weights too: resnet18\.TAG"):
        images_spec("n", tmp_path / "two", "resnet18")
    neither = inside("init", "n", check=False)
    assert neither.returncode == 2


def test_the_smallest_class_leaves_samples_to_train_on(tmp_path):
    """A draw takes equally many of each class: the shares of all samples may be too many."""
    images(tmp_path / "birds", {"crow": 90, "dodo": 7, "gull": 40})
    drafted = images_spec("birds", tmp_path / "birds", "ViT-B-32/laion2b_s34b_b79k")
    # 15 % of 137 are 20, 20 % are 27: 7 and 9 of each class, and dodo has 7 in all.
    assert "held_out: 6 " in drafted.text
    assert "test: 6 " in drafted.text
    assert any("'dodo' has 7 samples: 6 are few" in note for note in drafted.notes)
    spec = tmp_path / "birds.yaml"
    spec.write_text(drafted.text)
    _, classes, _ = planned(load(spec))
    assert [(c.train, c.held_out, c.test) for c in classes] == [(86, 2, 2), (3, 2, 2), (36, 2, 2)]


def test_a_class_without_a_sample_for_each_split_is_named(tmp_path):
    images(tmp_path / "birds", {"crow": 9, "dodo": 2, "gull": 4})
    with pytest.raises(ConfigError, match=r"'dodo' have 2 samples or fewer\. Each class needs 3"):
        images_spec("birds", tmp_path / "birds", "ViT-B-32/laion2b_s34b_b79k")
    table(tmp_path / "t.csv", [["text", "label"], *([str(k), "ab"[k > 5]] for k in range(8))])
    with pytest.raises(ConfigError, match="'b' have 2 samples or fewer"):
        texts_spec("t", tmp_path / "t.csv", "m")


def test_a_name_in_capitals_gets_a_proposal(tmp_path):
    images(tmp_path / "birds", {"crow": 9, "dodo": 9})
    with pytest.raises(ConfigError, match=r"'My Birds': .*Write 'my-birds', say"):
        images_spec("My Birds", tmp_path / "birds")
