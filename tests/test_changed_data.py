"""Data that change after a sweep began: no trial trains on others than its basis says."""

import csv

import pytest
from pictures import spec_of, write_folders, write_image
from tiny_text import tiny_text, write_world

import soupray
from soupray.core.errors import ConfigError
from soupray.data.cache import open_data
from soupray.data.changes import refuse_changed
from soupray.search.plan import trials_of
from soupray.search.state import find_basis
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.training.trial import fine_tune
from soupray.training.worker import worker_context

MORE = ("trials: 2", "trials: 3")


def test_a_sweep_of_changed_texts_trains_nothing_and_names_them(tmp_path, without_ray):
    folder, home = write_world(tmp_path / "world"), tmp_path / "home"
    made, more = tiny_text(folder), tiny_text(folder, MORE)
    assert soupray.run_sweep(made, home=home, show=False).trained == 2
    stored = sorted((folder / "store" / "trials").rglob("*"))
    before = (folder / "test.tsv").read_text()
    # One word in the last line of test.tsv, sample 29, and one text more in short.jsonl.
    (folder / "test.tsv").write_text(before.replace("of sun and rain", "of sun and rain rain"))
    with (folder / "short.jsonl").open("a") as file:
        file.write('{"text": "salt soup", "label": "food"}\n')
    says = (
        r"^the data changed since the sweep began: split test: 1 changed \(test/29\); split short:"
        r" 1 new \(short/8\)\. Restore the data\. Or put the new ones at another path"
    )
    with pytest.raises(ConfigError, match=says):
        soupray.run_sweep(more, home=home, show=False)
    # A trial has its own look: with another train split, a worker refuses it.
    (folder / "train.csv").write_text(
        (folder / "train.csv").read_text().replace("soup", "soup soup")
    )
    place = find_place(more, home)
    trial = trials_of(more, find_basis(place.open_store(), more))[2]
    worker_context.cache_clear()
    here = worker_context(more, place)
    with pytest.raises(ConfigError, match=r"split (train|held_out): \d+ changed \(train/"):
        next(fine_tune(trial, here.task, here.data, here.checkpoints))
    assert sorted((folder / "store" / "trials").rglob("*")) == stored


def test_a_changed_image_and_a_changed_caption_are_named(tmp_path):
    for number in range(12):
        write_image(tmp_path / "images" / f"{number}.jpg", number)

    def write(name: str, pairs) -> None:
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *pairs])

    pairs = [(f"images/{number}.jpg", f"picture {number}") for number in range(12)]
    write("train.csv", pairs[:8])
    write("test.csv", pairs[8:])
    made = SweepSpec(
        name="pairs",
        task={"kind": "open_clip", "model": "soupray:digits"},
        data={"kind": "captions", "train": f"{tmp_path}/train.csv", "test": f"{tmp_path}/test.csv",
              "held_out": 3},
        objective="retrieval",
        metric="recall_at_1",
        search={"trials": 1, "space": {"lr": 1e-3, "epochs": 1}},
    )  # fmt: skip
    then = {s.name: s.digest for s in open_data(made, tmp_path / "cache").splits}
    refuse_changed(open_data(made, tmp_path / "cache"), then)
    write_image(tmp_path / "images" / "9.jpg", 99)
    write("test.csv", [*pairs[8:10], ("images/10.jpg", "another caption"), pairs[11]])
    with pytest.raises(ConfigError, match=r"split test: 2 changed \(test/1, test/2\)\. Restore"):
        refuse_changed(open_data(made, tmp_path / "cache"), then)
    # On a machine that never decoded the old ones, the digests are all that is known.
    says = rf"was {then['test'][:12]}; the samples of then are not decoded on this machine"
    with pytest.raises(ConfigError, match=says):
        refuse_changed(open_data(made, tmp_path / "other"), then)


def test_new_and_lost_files_of_folders_are_named(tmp_path):
    write_folders(tmp_path / "train", {"ant": 4, "bee": 4, "cat": 4})
    write_folders(tmp_path / "test", {"ant": 2, "bee": 2, "cat": 2}, seed=50)
    made = spec_of(f"""
        kind: folder
        train: {tmp_path}/train
        test: {tmp_path}/test
        held_out: 3
        size: 16""")
    then = {s.name: s.digest for s in open_data(made, tmp_path / "cache").splits}
    gone, *_ = sorted((tmp_path / "test" / "bee").iterdir())
    gone.unlink()
    write_image(tmp_path / "test" / "cat" / "new.jpg", 77)
    says = rf"began: split test: 1 new \(cat/new\.jpg\), 1 gone \(bee/{gone.name}\)\. Restore"
    with pytest.raises(ConfigError, match=says):
        refuse_changed(open_data(made, tmp_path / "cache"), then)
