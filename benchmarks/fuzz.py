"""Inputs that nobody writes on purpose: `make fuzz`, or python -m benchmarks.fuzz.

Specs, records, tables, shards, images, arrays and folders are made by a grammar or changed at
random, by hypothesis, and read. Each one may be accepted, or refused with an error of soupray in
one line. All else is a find: another exception, a message of several lines, more than 20 seconds,
or 4 GB more memory. FUZZ_MINUTES (10) says how long, FUZZ_SEED (0) which inputs. Prints the report;
exit status 1 if there was a find. Finds become tests in tests/test_hostile_*.py.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from soupray.core.errors import SouprayError
from soupray.core.records import Basis, Evaluation, Manifest
from soupray.data.decoding import Look, decoded
from soupray.data.folders import list_folders
from soupray.data.idx import read_idx
from soupray.data.opening import Unreadable
from soupray.data.reading import check_images
from soupray.data.shards import list_shards, shards
from soupray.data.splits import read_array
from soupray.data.text import read_texts
from soupray.reporting.recipe_file import read_recipe, specs_of
from soupray.search.plan import plan
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.data import TextSpec
from soupray.spec.sweep_spec import parse
from soupray.spec.yaml import parse_yaml
from soupray.store.objects import open_store, read_record

ROOT = Path(__file__).parent.parent
LONGEST_S, MOST_MEMORY, ROUND = 20, 4 * 2**30, 100
CLASSES = ("food", "weather")


class Subject(NamedTuple):
    """What is read: inputs, and the function that reads one. It returns what it read."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]


class Find(NamedTuple):
    """An input that ended in neither way: of which subject, where, and what was said."""

    subject: str
    where: str
    said: str
    example: str


# Inputs

ODD_TEXTS = st.sampled_from(
    ["", " ", "\n", "a\nb", "\0", "a\0b", "~nosuchuser", "~", "**", "/", "..", "/dev/zero", "/dev",
     "x" * 300, "\ud800", "\x1b[31m", "{0..9999999999}", "{9..0}.tar", "0010", "1:30", "1e9",
     "2026-11-29", "off", "null", ".nan", "-0", "é", "\u2028", "[bold]", "s3://[::1", "s3://b/p?x",
     "file:///x#1", "http://a:99999", "%s", "{}", "{{}}", "\ufeff", "package:x/y", "zero_shot"]
)  # fmt: skip
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**90, 0.0, -0.0, 1e-9, 1e-320, 1e308,
     float("inf"), float("-inf"), float("nan"), 0.5, 1.5, True, False, None]
)  # fmt: skip
ODD = st.recursive(
    ODD_TEXTS | ODD_NUMBERS | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ODD_TEXTS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to each value in a tree of plain data."""
    found = [at] if at else []
    if not isinstance(tree, dict | list):
        return found
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found += places(value, (*at, key))
    return found


@st.composite
def changed_tree(draw: Any, trees: list[Any]) -> Any:
    """Plain data in which some values are other ones, are gone, or have other keys."""
    tree = json.loads(json.dumps(draw(st.sampled_from(trees))))
    for _ in range(draw(st.integers(1, 3))):
        every = places(tree)
        if not every:
            return tree
        *way, last = draw(st.sampled_from(every))
        parent = tree
        for key in way:
            parent = parent[key]
        match draw(st.integers(0, 5)):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[draw(ODD_TEXTS)] = parent.pop(last)
            case 2 if isinstance(parent[last], int | float):
                parent[last] = draw(ODD_NUMBERS)
            case 3:
                *_, other = draw(st.sampled_from(every))
                parent[last] = other
            case _:
                parent[last] = draw(ODD)
    return tree


@st.composite
def changed_bytes(draw: Any, files: list[bytes]) -> bytes:
    """A file that is cut, in which bytes are other ones, or in which parts are there twice."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 512]))
        match draw(st.integers(0, 6)):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case 4:
                data[at : at + size] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f"])) * size
            case 5 if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                data[at:at] = draw(st.sampled_from([b"\n", b'"', b"\0", b"\xed\xa0\x80", b"\xff"]))
    return bytes(data)


PIECES = st.sampled_from(
    ["&a", "*a", "<<: *a", "!!set", "- ", ": ", "? ", "[", "{", "}", "|", ">", "'", '"', "#", "---",
     "%YAML", "\t", "@", "0o7", "!!float x", "!!map [a]", "=", "`", "\u0085", "1_0"]
)  # fmt: skip


@st.composite
def changed_text(draw: Any, texts: list[str]) -> str:
    """Lines that are gone, are there twice, or have odd pieces in them."""
    lines = draw(st.sampled_from(texts)).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        piece = draw(PIECES | ODD_TEXTS)
        match draw(st.integers(0, 4)):
            case 0:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 1 if len(lines) > 1:
                del lines[at]
            case 2:
                name, colon, _ = lines[at].partition(":")
                lines[at] = f"{name}{colon} {piece}"
            case _:
                place = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:place] + piece + lines[at][place:]
    return "\n".join(lines)


CELLS = st.sampled_from(
    ["food", "weather", "bread", "a,b", 'say "x"', '"', '""', '"open', 'shut"', "a\tb", "a\nb", "",
     " ", "\r", "\0", "\ufeff", "\u2028", "é", "x" * 60, "1", "label", "text"]
)  # fmt: skip


@st.composite
def tables(draw: Any) -> tuple[str, bytes]:
    """(ending, content) of a table: well formed, nearly so, or not."""
    ending = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".ndjson", ".txt"]))
    delimiter = "\t" if ending == ".tsv" else ","
    sizes = st.sampled_from([(2, 2), (2, 2), (1, 3)])
    least, most = draw(sizes)
    some = draw(st.lists(st.lists(CELLS, min_size=least, max_size=most), max_size=3))
    good = [[draw(st.sampled_from(CLASSES)), draw(CELLS)] for _ in range(draw(st.integers(0, 4)))]
    rows = [["label", "text"], *good, *(some if draw(st.booleans()) else []), *good[:1]]
    if ending in (".csv", ".tsv", ".txt"):
        quote = draw(st.sampled_from(["", '"']))
        text = "\n".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    else:
        objects = [dict(zip(("label", "text", "n"), row, strict=False)) for row in rows]
        lines = [json.dumps(one) for one in objects]
        lines += draw(st.lists(st.sampled_from(['{"text": "\\ud800"}', "[" * 5000, "9" * 5000, "{}",
                                                '{"a": 1, "a": 2}', "NaN", '"', "null", "[]"]),
                               max_size=2))  # fmt: skip
        text = "\n".join(lines)
    data = text.encode("utf-8", "replace")
    return ending, draw(changed_bytes([data])) if draw(st.booleans()) and data else data


@st.composite
def tar_files(draw: Any) -> bytes:
    """A tar file of members with odd names, types and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=draw(st.sampled_from([1, 2]))) as tar:
        for number in range(draw(st.integers(0, 4))):
            key = draw(st.sampled_from([f"{number:03d}", "a", "a/b", ".", "é", "a b", "x" * 120]))
            odd = st.lists(st.sampled_from(["jpg", "cls", "png", "json", "JPG", ""]), max_size=4)
            for ending in draw(st.sampled_from([["jpg", "cls"], ["cls", "png", "json"]]) | odd):
                info = tarfile.TarInfo(f"{key}.{ending}")
                content = draw(st.sampled_from([b"0", b"0", b"1", b"1", b"x", b"", b"9" * 30]))
                info.size = len(content)
                info.type = draw(st.sampled_from([b"0"] * 20 + [b"1", b"2", b"5", b"6", b"S"]))
                tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    return draw(changed_bytes([data])) if draw(st.booleans()) else data


def image_files() -> list[bytes]:
    """Small images in every format, mode and depth that Pillow writes."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    colour, grey = Image.fromarray(noise[:, :, :3].copy()), Image.fromarray(noise[:, :, 0].copy())
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    floats = Image.fromarray((noise[:, :, 0] / 255).astype(np.float32))
    modes = [colour, grey, deep, floats, Image.fromarray(noise), colour.convert("P")]
    modes += [grey.convert("1"), grey.convert("LA"), colour.convert("CMYK"), deep.convert("I")]
    exif = Image.Exif()
    exif[274] = 6
    found = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF"):
        for image in modes:
            for how in ({}, {"exif": exif}, {"save_all": True, "append_images": [image, image]}):
                out = io.BytesIO()
                try:
                    image.save(out, kind, **how)
                except (OSError, ValueError, KeyError):  # no such mode in this format
                    continue
                found.append(out.getvalue())
    return list(dict.fromkeys(found))


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that its decoder goes on."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        size = min(struct.unpack(">I", data[at : at + 4])[0], len(data) - at - 8)
        body = data[at + 4 : at + 8 + size]
        out += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


# What reads them


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


# The run


class TookTooLong(Exception):
    """An input took more than LONGEST_S seconds."""


def _late(number: int, frame: object) -> None:
    raise TookTooLong


def ended(subject: Subject, given_: Any) -> str:
    """How an input ended: accepted, or refused. Raises whatever is a find."""
    signal.alarm(LONGEST_S)
    try:
        subject.read(given_)
    except (SouprayError, Unreadable) as error:
        said = str(error)
        said.encode()
        # Names of classes are shown side by side, in lines.
        assert "\n" not in said or "in task.classes" in said, f"several lines: {said!r}"
        return "refused"
    finally:
        signal.alarm(0)
    return "accepted"


def fuzzed(subject: Subject, number: int, counts: Counter[str]) -> Find | None:
    """ROUND inputs of a subject; the first find, made small."""
    examples: list[Any] = []

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(subject.inputs)
    def one(given_: Any) -> None:
        examples.append(given_)
        counts[ended(subject, given_)] += 1

    try:
        one()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/soupray/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return Find(subject.name, where, said, repr(examples[-1])[:400] if examples else "")
    return None


def main() -> int:
    """Read inputs until the time is over, and print the report."""
    minutes = float(os.environ.get("FUZZ_MINUTES", "10"))
    first = int(os.environ.get("FUZZ_SEED", "0"))
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    counts: dict[str, Counter[str]] = {}
    finds: dict[tuple[str, str, str], Find] = {}
    began, number = time.monotonic(), first
    with tempfile.TemporaryDirectory() as folder:
        every = subjects(Room(Path(folder)))
        only = sys.argv[1:]
        every = [s for s in every if not only or s.name in only]
        while time.monotonic() - began < 60 * minutes:
            for subject in every:
                mine = counts.setdefault(subject.name, Counter())
                if find := fuzzed(subject, number, mine):
                    finds.setdefault((find.subject, find.where, find.said.split(":")[0]), find)
            number += 1
    print(report(counts, list(finds.values()), time.monotonic() - began, first))
    return 1 if finds else 0


def report(counts: dict[str, Counter[str]], finds: list[Find], seconds: float, first: int) -> str:
    """The report, in Markdown."""
    total = sum(sum(c.values()) for c in counts.values())
    lines = [
        f"{total} inputs in {seconds / 60:.1f} minutes from seed {first}: {len(finds)} finds.\n",
        "| subject | inputs | accepted | refused |",
        "|---|---:|---:|---:|",
    ]
    for name, mine in counts.items():
        lines.append(f"| {name} | {sum(mine.values())} | {mine['accepted']} | {mine['refused']} |")
    lines += [
        f"\n- **{find.subject}**, {find.where}: {find.said}\n\n      {find.example}"
        for find in finds
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
