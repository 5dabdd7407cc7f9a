"""A file of standard models' accuracies, in the layout of the ImageNet testbed.

    model,val,imagenet-a,val-on-imagenet-a-classes
    resnet50,76.13,0.76,...

One row for each model; a column for each test set, top-1 accuracy in %; an empty cell where the
model was not evaluated. `val` (or `test`) is ID test. `val-on-NAME-classes` is ID test on the
classes of the shift NAME. Lines that begin with # are comments. The testbed of Taori et al.
(arXiv:2007.00644) publishes `robustness_top1s.csv` in this layout.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.core.records import Record
from soupray.spec.files import read_text

ON_ID = ("val", "test")
"""Names of the column of ID test."""


class Baseline(Record, frozen=True, kw_only=True):
    """Accuracies of standard models.

    Attributes:
        source: name of the file.
        models: names.
        columns: for each test set, the accuracy of each model, from 0 to 1; None where it is empty.
    """

    source: str
    models: tuple[str, ...]
    columns: dict[str, tuple[float | None, ...]]

    def pairs(self, on_id: str, shift: str) -> list[tuple[str, float, float]]:
        """Return (model, ID accuracy, accuracy under the shift) of models that have both."""
        rows = zip(self.models, self.columns[on_id], self.columns[shift], strict=True)
        return [(name, a, b) for name, a, b in rows if a is not None and b is not None]

    @property
    def on_id(self) -> str:
        """The column of ID test."""
        return next(name for name in ON_ID if name in self.columns)


def read_baseline(path: Path) -> Baseline:
    """Return the standard models of a file.

    Args:
        path: of a CSV file; see this module.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    lines = [line for line in read_text(path).split("\n") if line and not line.startswith("#")]
    rows = list(csv.reader(lines))
    if not rows or not rows[0] or rows[0][0] != "model":
        raise ConfigError(
            f"{path}: the first column must be 'model', and one column for each test set follow, "
            "with top-1 accuracies in %: the layout of the ImageNet testbed."
        )
    head, *body = rows
    names = head[1:]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"{path}: column {twice!r} is there twice.")
    if sum(name in ON_ID for name in names) != 1:
        raise ConfigError(
            f"{path}: one column must be ID test, named 'val' or 'test'. There are: "
            f"{', '.join(names[:8]) or 'none'}."
        )
    cells = [[_share(path, row, k, head) for k in range(1, len(head))] for row in body]
    known = [value for row in cells for value in row if value is not None]
    if known and max(known) <= 0.01:
        raise ConfigError(
            f"{path}: all accuracies are at most 1. Write them in %, as the testbed does: 76.1."
        )
    return Baseline(
        source=path.name,
        models=tuple(row[0] for row in body),
        columns={name: tuple(row[k] for row in cells) for k, name in enumerate(names)},
    )


def _share(path: Path, row: list[str], k: int, head: list[str]) -> float | None:
    if len(row) != len(head):
        raise ConfigError(
            f"{path}: the row of {row[0]!r} has {len(row)} cells, and the first line {len(head)}."
        )
    if not row[k].strip():
        return None
    try:
        value = float(row[k])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise ConfigError(
            f"{path}: {row[0]!r}, column {head[k]!r}: {row[k]!r}. Allowed: a number from 0 to 100, "
            "in %, or nothing."
        )
    return value / 100
