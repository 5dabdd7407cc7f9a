"""What reads the inputs of one file."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from hypothesis import strategies as st

from benchmarks.fuzz.inputs import (
    CLASSES,
    ODD_TEXTS,
    changed_bytes,
    changed_text,
    changed_tree,
    image_files,
    tables,
    tar_files,
    with_checksums,
)
from soupray.core.records import Basis, Evaluation
from soupray.core.trials import Manifest
from soupray.data.decoding import Look, decoded
from soupray.data.folders import list_folders
from soupray.data.idx import read_idx
from soupray.data.reading import check_images
from soupray.data.shards import list_shards, shards
from soupray.data.splits import read_array
from soupray.data.text import read_texts
from soupray.reporting.recipe_file import read_recipe, specs_of
from soupray.search.plan import plan
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.sweep_spec import parse
from soupray.spec.tables import TextSpec
from soupray.spec.yaml import parse_yaml
from soupray.store.objects import open_store, read_record

ROOT = Path(__file__).parent.parent.parent


class Subject(NamedTuple):
    """What is read: inputs, and the function that reads one. It returns what it read."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]


class Room:
    """A folder for files that one input after the other is written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = open_store("memory://")

    def file(self, name: str, data: bytes) -> Path:
        """A file with this content."""
        path = self._folder / name
        path.write_bytes(data)
        return path

    def table(self, given_: tuple[str, bytes]) -> object:
        """Read a table of texts."""
        ending, data = given_
        path = self.file(f"t{ending}", data)
        spec = TextSpec(kind="text", train=str(path), test=1, held_out=2, on_long="cut")
        return read_texts(str(path), spec, CLASSES)

    def shard(self, data: bytes) -> object:
        """Read a shard and its images."""
        path = self.file("s.tar", data)
        found = list_shards(str(path), "data.train", skip=bool(len(data) % 2))
        return check_images(found, Look(4, 3))

    def record(self, given_: tuple[Any, bytes]) -> object:
        """Read a record of the store."""
        kind, data = given_
        self._store.put("r.json", data)
        return read_record(self._store, "r.json", kind)

    def recipe(self, data: bytes) -> object:
        """Read a recipe file and its specs."""
        return specs_of(read_recipe(self.file("x.recipe.json", data)))

    def names(self, names: list[bytes]) -> object:
        """Read a folder of classes whose files have these names."""
        root = self._folder / "names"
        shutil.rmtree(root, ignore_errors=True)
        (root / "c").mkdir(parents=True)
        for place, name in enumerate(names):
            path = Path(os.fsdecode(os.fsencode(root / "c") + b"/" + name + b".png"))
            match place % 4:
                case 0 | 1:
                    path.write_bytes(b"x")
                case 2:
                    path.symlink_to(".")
                case _:
                    os.mkfifo(path)
        class_folders(root)
        return check_images(list_folders(root, {"c": 0}, "data.train"), Look(4, 3))


def read_image(data: bytes) -> object:
    """Decode an image; its form is as it must be."""
    found = decoded(data, Look(8, 3 if len(data) % 2 else 1))
    assert found.pixels.shape == (3 if len(data) % 2 else 1, 8, 8)
    assert found.pixels.dtype == np.uint8
    return found


def read_spec(text: str) -> object:
    """Parse a spec, and what follows from it alone."""
    spec = parse(text, "x.yaml")
    if spec.search.trials <= 50:
        plan(spec)
    return spec.digest, spec.setting


def subjects(room: Room) -> list[Subject]:
    """All subjects."""
    specs = [path.read_text() for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
    trees = [parse_yaml(text, "x") for text in specs]
    records, recipes = stored()
    arrays = [
        saved(np.ones(9, np.uint8)),
        saved(np.arange(6).reshape(2, 3)),
        saved(np.ones((2, 0))),
    ]
    idx = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 4) + bytes(24)
    dumped = changed_tree(trees).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
    images = changed_bytes(image_files())
    as_record = st.sampled_from(records).flatmap(
        lambda one: st.tuples(
            st.just(one[0]),
            changed_bytes([one[1]])
            | changed_tree([json.loads(one[1])]).map(lambda tree: json.dumps(tree).encode()),
        )
    )
    as_recipe = changed_bytes(recipes) | changed_tree([json.loads(r) for r in recipes]).map(
        lambda tree: json.dumps(tree).encode()
    )
    patterns = st.lists(ODD_TEXTS | st.sampled_from(["{0..", "..9}", "*", "?"]), max_size=4)
    return [
        Subject("specs, other values", dumped, read_spec),
        Subject("specs, other lines", changed_text(specs), read_spec),
        Subject("label maps", changed_text(["a: [b, c]\nd: &e [f]\ng: *e"]).map(
            lambda text: text.encode("utf-8", "replace")),
                lambda data: read_label_map(str(room.file("m.yaml", data)))),
        Subject("records", as_record, room.record),
        Subject("recipe files", as_recipe, room.recipe),
        Subject("tables", tables(), room.table),
        Subject("shards", tar_files(), room.shard),
        Subject("names of shards", patterns.map("".join), lambda p: shards(p, "data.train")),
        Subject("images", images | images.map(with_checksums), read_image),
        Subject("IDX files", changed_bytes([idx]), lambda data: read_idx(room.file("i", data), 3)),
        Subject("IDX files, gzipped",
                changed_bytes([zipped(idx)]) | changed_bytes([idx]).map(zipped),
                lambda data: read_idx(room.file("i.gz", data), 3)),
        Subject("arrays", changed_bytes(arrays),
                lambda data: read_array(room.file("a.npy", data), "data.held_out.ids")),
        Subject("names of files", st.lists(st.binary(min_size=1, max_size=6).map(
            lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")), max_size=5, unique=True),
                room.names),
    ]  # fmt: skip


def stored() -> tuple[list[tuple[Any, bytes]], list[bytes]]:
    """Records by kind, and recipe files, of the store that tests/test_stores.py continues."""
    kinds = {"bases": Basis, "trials": Manifest, "evaluations": Evaluation}
    records, recipes = [], []
    with tarfile.open(ROOT / "tests" / "stores" / "store.tar.xz") as tar:
        for member in tar:
            folder, content = member.name.split("/")[1:2], tar.extractfile(member)
            if content is None or not member.name.endswith(".json"):
                continue
            data = content.read()
            if folder and folder[0] in kinds:
                records.append((kinds[folder[0]], data))
            elif member.name.endswith(".recipe.json"):
                recipes.append(data)
    return records, recipes


def saved(array: np.ndarray) -> bytes:
    """The bytes of an array file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def zipped(data: bytes) -> bytes:
    """The gzipped bytes."""
    return gzip.compress(data)
