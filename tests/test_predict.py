"""`soupray predict`: the leaderboard's own answers on files, in every format; bad inputs named."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import inside, leaderboard
from PIL import Image

import soupray
from soupray.core.errors import ConfigError, InputError
from soupray.inference.predict import writer
from soupray.inference.sources import find_inputs
from soupray.search.state import find_basis
from soupray.training.worker import worker_context


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """(folder, labels by file): the test images as PNG files in two folders."""
    spec, place, store = run.world()
    images, labels = worker_context(spec, place).data.samples(find_basis(store, spec).split("test"))
    root, of = tmp_path_factory.mktemp("files"), {}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / str(number % 2) / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(image[0])).save(path)
        of[str(path)] = spec.task.classes[label]
    return root, of


def predicted(run, what: str, *inputs: object, check: bool = True):
    return inside("predict", what, *inputs, *run.where, check=check)


def test_its_answers_on_files_are_those_of_the_leaderboard_in_every_format(run, files, tmp_path):
    root, labels = files
    entries = {e["name"]: e for e in leaderboard(run.output)}
    for name in ("greedy", "ensemble"):
        done = predicted(run, f"mini:{name}", root, "--output", tmp_path / f"{name}.csv")
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
        assert {row["input"] for row in rows} == labels.keys()
        right = sum(labels[row["input"]] == row["class"] for row in rows)
        assert right == entries[name]["test"]["correct"]
        assert f"{len(labels)} of {len(labels)} inputs predicted with {name}" in done.stderr
    flags = ("--probabilities", "--top", 2, "--output")
    for ending in ("jsonl", "parquet"):
        predicted(run, "mini:greedy", root, *flags, tmp_path / f"all.{ending}")
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    greedy = list(csv.DictReader((tmp_path / "greedy.csv").open()))
    assert len(table) == len(lines) == len(greedy)
    for one, two, three in zip(table, lines, greedy, strict=True):
        assert one["input"] == two["input"] == three["input"]
        assert one["class"] == two["class"] == three["class"]
        assert one["probability"] == pytest.approx(two["probability"])
        assert float(three["probability"]) == pytest.approx(two["probability"], abs=1e-5)
        shares = {key[2:-1]: value for key, value in two.items() if key.startswith("p(")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        first, second = sorted(shares, key=lambda name: -shares[name])[:2]
        assert (two["class"], two["class_2"]) == (first, second)
        assert two["probability_2"] == pytest.approx(shares[second])
    assert not list(tmp_path.glob("*.part"))


def test_bad_inputs_are_named_the_rest_is_written_and_the_status_is_1(run, files, tmp_path):
    good = next(iter(files[1]))
    (tmp_path / "empty.png").touch()
    (tmp_path / "table.csv").write_text(f"path\n{good}\nempty.png\nmissing.png\n")
    done = predicted(run, "mini@champion", tmp_path / "table.csv", check=False)
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["input"] for row in rows] == [good]
    assert f"cannot be read: {tmp_path}/empty.png: not an image" in done.stderr
    assert f"cannot be read: {tmp_path}/missing.png: No such file" in done.stderr
    assert "1 of 3 inputs predicted" in done.stderr
    summary = predicted(run, "mini@champion", tmp_path / "table.csv", "--json", check=False)
    found = json.loads(summary.stdout)
    assert found["predicted"] == 1
    assert found["failed"].keys() == {f"{tmp_path}/empty.png", f"{tmp_path}/missing.png"}
    wrong = predicted(run, "mini@champion", good, "--output", "x.xlsx", check=False)
    assert (wrong.returncode, "one of .csv, .jsonl, .parquet" in wrong.stderr) == (2, True)


def test_texts_and_paths_come_from_tables_files_and_standard_input(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one, two",x\nthree,y\n')
    (tmp_path / "a.tsv").write_text("review\nfine\n")
    (tmp_path / "a.jsonl").write_text('{"text": "four", "n": 1}\n\n{"text": "five"}\n')
    (tmp_path / "a.txt").write_text("six\n\nseven\n")
    names = [str(tmp_path / f"a.{ending}") for ending in ("csv", "tsv", "jsonl", "txt")]
    found = find_inputs([*names, "-"], "texts", None, io.StringIO("eight\n\nnine\n"))
    numbers = ["one, two", "three", "fine", "four", "five", "six", "seven", "eight", "nine"]
    assert found.given == numbers
    csv_, tsv, jsonl, txt = names
    assert found.names == [
        f"{csv_}:2", f"{csv_}:3", f"{tsv}:2", f"{jsonl}:1", f"{jsonl}:3", f"{txt}:1", f"{txt}:3",
        "-:1", "-:3",
    ]  # fmt: skip
    assert find_inputs([csv_], "texts", "label", io.StringIO()).given == ["x", "y"]
    paths = io.StringIO("b.png\nc.png\n")
    assert find_inputs(["-", "s3://b/x.png"], "images", None, paths).names == [
        "b.png",
        "c.png",
        "s3://b/x.png",
    ]


@pytest.mark.parametrize(
    ("name", "content", "column", "error", "said"),
    [
        ("a.csv", "x,y\n1,2\n", None, ConfigError, "a.csv:2: no column 'text'. .* x, y. Name one"),
        ("a.csv", "text\n1\n", "no", ConfigError, "no column 'no'"),
        ("a.csv", "text,b\n1\n", None, ConfigError, "a.csv:2: 1 cells in a table of 2 columns"),
        ("a.csv", 'text\n"1\n', None, ConfigError, "a.csv: in the row of line 2"),
        ("a.csv", "text,text\n1,2\n", None, ConfigError, "a.csv:1: two columns have the same name"),
        ("a.csv", "text\n", None, InputError, "no texts in"),
        ("a.jsonl", "{\n", None, ConfigError, "a.jsonl:1: not JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}', None, ConfigError, "'text' is there twice"),
        ("a.jsonl", "[1]\n", None, ConfigError, "a.jsonl:1: a line must be a JSON object"),
        ("a.jsonl", '{"text": 3}\n', None, ConfigError, "a.jsonl:1: '3' is not a text"),
        ("a.png", "", None, ConfigError, "this model reads texts: name a table"),
        ("a.txt", "", None, InputError, "no texts in"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_understood_is_refused_by_line(
    tmp_path, name, content, column, error, said
):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=said):
        find_inputs([str(tmp_path / name)], "texts", column, io.StringIO())


def test_what_a_folder_has_besides_images_is_said(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.JPG", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = find_inputs([str(tmp_path)], "images", None, io.StringIO())
    assert found.names == [str(tmp_path / "a.png"), str(tmp_path / "sub" / "b.JPG")]
    assert found.notes[0].startswith(f"2 of 4 files in {tmp_path} are left out, like ")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.md").touch()
    with pytest.raises(InputError, match=r"no images in .*\(1 of 1 files"):
        find_inputs([str(tmp_path / "none")], "images", None, io.StringIO())


def test_names_that_are_not_utf_8_or_command_a_terminal_are_escaped_in_every_format(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"\xff.png", b"\x1b[2J.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    found = find_inputs([str(folder)], "images", None, io.StringIO())
    assert all(Path(given).exists() for given in found.given)
    assert all(name.isprintable() and name.encode() for name in found.names)
    rows = [{"input": name, "class": "a", "probability": 0.5} for name in found.names]
    for ending in ("csv", "jsonl", "parquet"):
        columns = {name: type(value) for name, value in rows[0].items()}
        with writer(tmp_path / f"x.{ending}", columns, io.StringIO()) as write:
            write(rows)
        assert (tmp_path / f"x.{ending}").stat().st_size


@pytest.mark.slow
def test_on_a_cluster_the_answers_are_the_same(run, files, tmp_path, monkeypatch):
    root, labels = files
    bad = root / os.fsdecode(b"bad\xff.png")  # a name that is not UTF-8
    bad.write_text("hello")
    monkeypatch.chdir(root.parent)  # a relative path is one on the driver
    monkeypatch.setattr("soupray.inference.model.CHUNK", 50)  # several parts
    flags = ("--probabilities", "--calibrated", "--output")
    for where in ((), ("--address", "local")):
        out = tmp_path / f"{len(where)}.csv"
        done = predicted(run, "mini:greedy", root.name, *where, *flags, out, check=False)
        assert done.returncode == 1
        assert f"cannot be read: {root.name}/bad\\udcff.png: not an image" in done.stderr
        assert f"{len(labels)} of {len(labels) + 1} inputs predicted" in done.stderr
    bad.unlink()
    assert (tmp_path / "2.csv").read_text() == (tmp_path / "0.csv").read_text()
    wrong = ("--address", "local", "--device", "cpu")
    done = predicted(run, "mini:greedy", root.name, *wrong, check=False)
    assert (done.returncode, "leave it out with --address" in done.stderr) == (2, True)


def mean_nll(probabilities, labels) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels].astype(np.float64)).mean())


def test_calibrated_probabilities_have_the_nll_of_the_leaderboard_and_the_best_on_held_out(run):
    spec, place, store = run.world()
    data, basis = worker_context(spec, place).data, find_basis(store, spec)
    (held_out, held_labels), (test, labels) = (
        data.samples(basis.split(name)) for name in ("held_out", "test")
    )
    entries = {e["name"]: e for e in leaderboard(run.output)}
    for name in ("best_single", "greedy", "ensemble", "vrf(greedy)"):
        plain, cooled = (
            soupray.load(f"mini:{name}", home=run.home, calibrated=on) for on in (False, True)
        )
        found = entries[name]["calibrated"]
        after, before = cooled.predict_proba(np.array(test)), plain.predict_proba(np.array(test))
        assert mean_nll(before, labels) == pytest.approx(entries[name]["test"]["nll"], rel=1e-5)
        assert mean_nll(after, labels) == pytest.approx(found["test_nll"], rel=1e-5)
        assert (after.argmax(1) == before.argmax(1)).all()
        logits = plain.logits(np.array(held_out)).astype(np.float64)

        def at(temperature: float, logits=logits) -> float:
            shares = np.exp(logits / temperature)
            return mean_nll(shares / shares.sum(1, keepdims=True), held_labels)

        best = at(found["temperature"])
        assert best <= min(
            at(1.0), at(found["temperature"] * 1.02), at(found["temperature"] / 1.02)
        )
        assert cooled.temperature == found["temperature"] != 1


def test_a_recipe_without_a_temperature_is_not_calibrated_in_silence(run, tmp_path):
    recipe = json.loads((run.output / "greedy.recipe.json").read_text())
    old = tmp_path / "old.recipe.json"
    old.write_text(json.dumps(recipe | {"temperature": None}))
    with pytest.raises(ConfigError, match="has no temperature, because an older soupray wrote it"):
        soupray.load(old, home=run.home, calibrated=True)
    for value in (0, -1):
        old.write_text(json.dumps(recipe | {"temperature": value}))
        with pytest.raises(ConfigError, match="is not a finite number above 0"):
            soupray.load(old, home=run.home)


def test_rank_shows_nll_and_ece_before_and_after(run):
    shown = inside("rank", run.spec, *run.where, "--calibrated").stdout.split("T is fitted")[0]
    entry = next(e for e in leaderboard(run.output) if e["name"] == "ensemble")
    before, after = entry["test"], entry["calibrated"]
    numbers = (before["nll"], after["test_nll"], before["ece"], after["test_ece"])
    row = [line for line in shown.splitlines() if line.split()[:1] == ["ensemble"]][-1]
    assert row.split()[2:] == [f"{value:.3f}".lstrip("0") for value in numbers]
