"""Whether the data of a machine are those of a sweep; if not, which samples changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from soupray.core.errors import ConfigError
from soupray.data.building import SHOWN, is_whole
from soupray.data.cache import ADVICE, Data
from soupray.data.splits import shown_name


def refuse_changed(data: Data, digests: Mapping[str, str], where: str = "") -> None:
    """Refuse data that changed since a sweep began, and say what changed.

    The digest of a split does not say which sample is another one. If the samples of then are
    still decoded on this machine, they are compared with those of now.

    Args:
        data: the splits as they are now on this machine.
        digests: those of the splits of the sweep, by name.
        where: begins the message.

    Raises:
        ConfigError: a split has another digest, or is not there.
    """
    now = {split.name: split.digest for split in data.splits}
    other = [name for name, digest in digests.items() if now.get(name) != digest]
    if not other:
        return
    said = "; ".join(f"split {name}: {_change(data, name, digests[name])}" for name in other)
    raise ConfigError(f"{where}the data changed since the sweep began: {said}. {ADVICE}")


def _change(data: Data, name: str, digest: str) -> str:
    """What changed in a split whose digest was `digest`, in words."""
    then = _decoded(data.folder.parent, name, digest)
    if name not in [split.name for split in data.splits]:
        return "it is not there"
    if then is None:
        return (
            f"its digest is {data.split(name).digest[:12]} and was {digest[:12]}; the samples of "
            "then are not decoded on this machine, so that those that changed have no names here"
        )
    old, new = _contents(then, name), _contents(data, name)
    gone = [i for i in old if i not in new]
    added = [i for i in new if i not in old]
    changed = [i for i in new if i in old and old[i] != new[i]]
    counted = (("changed", changed), ("new", added), ("gone", gone))
    said = [f"{len(ids)} {what} ({_shown(ids)})" for what, ids in counted if ids]
    return ", ".join(said) or "the order or the classes of its samples are others"


def _decoded(cache: Path, name: str, digest: str) -> Data | None:
    """The data of this machine with a split of this digest, if they are still there."""
    for folder in sorted(cache.iterdir()):
        if folder.is_dir() and is_whole(folder):
            found = Data(folder)
            if (name, digest) in [(split.name, split.digest) for split in found.splits]:
                return found
    return None


def _contents(data: Data, name: str) -> dict[str, str]:
    """A digest of label and sample for each id; images that are streamed have only labels here."""
    ids = data.ids(data.split(name))
    labels = np.load(data.folder / f"{name}.labels.npy", mmap_mode="r")
    path = data.folder / f"{name}.images.npy"
    samples = np.load(path, mmap_mode="r") if path.exists() else np.zeros((len(ids), 1), np.uint8)
    # Texts are filled up with zeros to the longest of their split, which may be another one now.
    return {
        one: hashlib.sha256(label.tobytes() + sample.tobytes().rstrip(b"\0")).hexdigest()
        for one, label, sample in zip(ids, labels, samples, strict=True)
    }


def _shown(ids: list[str]) -> str:
    return ", ".join(map(shown_name, ids[:SHOWN])) + (" ..." if len(ids) > SHOWN else "")
