"""Damaged stores: what the verbs say about them, and what `gc` deletes."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from click.testing import CliRunner
from hypothesis import strategies as st

from benchmarks.fuzz.reading import ROOT, Subject
from soupray.cli import cli
from soupray.core.errors import SouprayError
from soupray.search.state import find_basis, known_trials
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.objects import open_store

STORES = ROOT / "tests" / "stores"
VERBS = {
    "gc": ("one", "--older-than", "0"),
    "status": ("one",),
    "status of an adaptive search": ("two",),
    "rank": ("one",),
    "pull": ("one", "--output", "pulled"),
    "check": ("one", "--pairs", "3"),
}
How = Literal["flipped", "cut", "emptied", "missing", "foreign", "replaced", "a folder"]
FOREIGN = (b"{}", b"[]", b"null", b"0", b'"x"', b'{"hello": 1}', b"hello", b"\xff\xd8\xff\xe0")


class Damage(NamedTuple):
    """What happens to one object.

    Attributes:
        path: of the object.
        how: one bit is another one; it ends early; it has no bytes; it is gone; it has bytes of
            another program; it has the bytes of another object; it is a folder.
        place: where, from 0 to 1, for a bit and an end.
        bytes_: the bytes of another program.
        other: the path of another object.
    """

    path: str
    how: How
    place: float
    bytes_: bytes
    other: str


class StoreRoom:
    """A small real store, and a copy of it for each input."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._clean = folder, folder / "clean"
        with tarfile.open(STORES / "store.tar.xz") as tar:
            tar.extractall(folder, filter="data")
        (folder / "store").rename(self._clean)
        for name in ("one", "two"):
            text = (STORES / f"{name}.yaml").read_text()
            (folder / f"{name}.yaml").write_text(text.replace("/STORE", f"{folder}/store"))
        self._wait(folder / "two.yaml")
        self.paths = sorted(
            str(p.relative_to(self._clean)) for p in self._clean.rglob("*") if p.is_file()
        )
        self._files = {p.rpartition("/")[2].partition(".")[0]: p for p in self.paths
                       if p.startswith(("weights/", "blobs/"))}  # fmt: skip
        self._named = {p: self._names(p) for p in self.paths if p.endswith(".json")}

    def _wait(self, path: Path) -> None:
        """One trial of a spec is not over: it has states, and no manifest."""
        spec, store = load(path), open_store(f"file://{self._clean}")
        basis = find_basis(store, spec)
        assert basis is not None
        key = next(t.key for t in known_trials(store, spec, basis))
        store.delete(layout.manifest(key))
        store.put(layout.resume_state(key), b'{"epoch": 1}')
        store.put(layout.resume_weights(key, 1), b"state")

    def _names(self, path: str) -> set[str]:
        """The files of arrays that an object names."""
        found = re.findall(rb"[0-9a-f]{64}", (self._clean / path).read_bytes())
        return {self._files[d.decode()] for d in found if d.decode() in self._files}

    def read(self, given: tuple[Damage, str]) -> object:
        """Do the damage, and run a verb.

        Raises:
            SouprayError: the verb ended with 1.
        """
        damage, verb = given
        store = self._folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self._clean, store, copy_function=os.link)
        self._do(damage, store / damage.path)
        name, *options = VERBS[verb]
        before = _files(store)
        os.chdir(self._folder)
        where = [str(self._folder / f"{name}.yaml"), "--home", str(self._folder / "home")]
        done = CliRunner().invoke(cli, [verb.split()[0], *where, *options])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert "Traceback" not in done.output, done.output
        needs_ray = "Ray at 127.0.0.1:1 does not answer" in done.output
        assert needs_ray or done.exit_code in (0, 1), f"{done.exit_code}: {done.output}"
        if verb == "gc":
            self._look(damage, before - _files(store))
        else:
            assert before <= _files(store), before - _files(store)
        if done.exit_code:
            raise SouprayError(done.output.strip().splitlines()[-1])
        return done.output

    def _look(self, damage: Damage, gone: set[str]) -> None:
        """Nothing went that is used.

        The names in a record that is gone do not count, and neither do those in a record that is
        now another, intact one of the same kind; but a manifest says whose it is.
        """
        replaced = damage.how == "replaced" and not damage.path.startswith("trials/")
        silent = {damage.path} if damage.how in ("missing", "a folder") or replaced else set()
        used = set[str]().union(*(n for p, n in self._named.items() if p not in silent))
        assert not gone & used, f"used, and gone: {sorted(gone & used)}"
        states = {p for p in gone if p.startswith("resume/")}
        assert not states, f"states of a trial that is not over are gone: {sorted(states)}"

    def _do(self, damage: Damage, path: Path) -> None:
        data = path.read_bytes()
        path.unlink()  # it is a link to the clean one
        at = int(damage.place * (len(data) - 1))
        match damage.how:
            case "flipped":
                bit = 1 << int(damage.place * 8e6) % 8
                path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            case "cut":
                path.write_bytes(data[:at])
            case "emptied":
                path.write_bytes(b"")
            case "foreign":
                path.write_bytes(damage.bytes_)
            case "replaced":
                path.write_bytes((self._clean / damage.other).read_bytes())
            case "a folder":
                path.mkdir()
                (path / "a file").write_bytes(b"x")


def _files(store: Path) -> set[str]:
    return {str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()}


@st.composite
def damages(draw: Any, room: StoreRoom, verb: str) -> tuple[Damage, str]:
    """A damage to one object. Each folder of the store is as likely as the others."""
    kinds = {re.sub(r"[0-9a-f]{16,}", "#", p.rpartition("/")[0]) for p in room.paths}
    kind = draw(st.sampled_from(sorted(kinds)))
    alike = [p for p in room.paths if re.sub(r"[0-9a-f]{16,}", "#", p.rpartition("/")[0]) == kind]
    path = draw(st.sampled_from(alike))
    how = draw(st.sampled_from([*How.__args__]))
    others = alike if draw(st.booleans()) else room.paths
    place = draw(st.floats(0, 1, width=32))
    bytes_, other = draw(st.sampled_from(FOREIGN)), draw(st.sampled_from(others))
    return Damage(path, how, place, bytes_, other), verb


def store_subjects(folder: Path) -> list[Subject]:
    """A subject for each verb."""
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # nothing is trained or evaluated
    room = StoreRoom(folder)
    read: Callable[[Any], object] = room.read
    return [Subject(f"stores, {verb}", damages(room, verb), read) for verb in VERBS]
