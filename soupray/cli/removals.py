"""What goes from a store, and what stays, as people read it: gc and delete."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from soupray.cli.console import out, size, tell
from soupray.reporting.live import table

if TYPE_CHECKING:
    from soupray.operations.deleting import Removal
    from soupray.operations.garbage import Garbage
    from soupray.operations.retention import Retention


def show_garbage(found: list[Garbage], url: str, dry: bool) -> None:
    """What went, or would go: each object, then counts and bytes, by sweep and reason."""
    shown = table("object", "size", "why", right=("size",))
    sums: dict[tuple[str, str], list[int]] = {}
    for one in found:
        why = re.sub("trial [0-9a-f]{16}", "the trial", one.why)  # its path has the key
        shown.add_row(_short(one.path), size(one.size_bytes), why)
        sums.setdefault((one.sweep or "-", why), []).append(one.size_bytes)
    if found:
        out.print(shown)
        out.print()
        summed = table("sweep", "why", "objects", "size", right=("objects", "size"))
        for (sweep, why), sizes in sums.items():
            summed.add_row(sweep, why, str(len(sizes)), size(sum(sizes)))
        out.print(summed)
    total = size(sum(one.size_bytes for one in found))
    done = "would be deleted from" if dry else "deleted from"
    tell(f"{len(found)} objects, {total}, {done} {url}.")


def show_staying(found: Retention) -> None:
    """Which trials of the sweep keep their weights, and why; nothing with `keep: all`."""
    for one in found.staying:
        tell(f"{found.sweep}: {one.trials} trials keep {size(one.size_bytes)}: {one.why}.")


def show_removal(found: Removal, planned: bool) -> None:
    """What would go with a sweep, by kind, or what went; and what stays."""
    kinds: dict[str, list[int]] = {}
    for path, size_bytes in found.objects.items():
        kinds.setdefault(path.partition("/")[0], []).append(size_bytes)
    right = ("objects", "size")
    shown = table("what", *right, right=right)
    for kind, sizes in kinds.items():
        shown.add_row(kind, str(len(sizes)), size(sum(sizes)))
    if planned:
        out.print(shown)
    done = "would be deleted from" if planned else "deleted from"
    total = size(sum(found.objects.values()))
    tell(f"{found.sweep}: {len(found.objects)} objects, {total}, {done} {found.storage}.")
    if found.kept_trials:
        tell(f"{len(found.kept_trials)} of its trials stay, because other sweeps use them.")
    if not found.alone:
        tell("Small results that do not say whose they are stay, for the other sweeps there.")


def _short(path: str) -> str:
    """A path whose digest, if it has one, is cut to 12 digits."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name[:12]}..." if len(name) > 32 else path
