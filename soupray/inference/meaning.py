"""What the outputs of a model mean to its user: probabilities, labels, numbers, masks, vectors."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from soupray.core.arrays import Logits, Mask
from soupray.core.errors import ConfigError
from soupray.core.records import Objective

Outputs = npt.NDArray[np.float32]
"""float32 [N, C]: probabilities, the numbers of a regression, or embeddings; of masks [N, H, W]."""


class Wanted(NamedTuple):
    """What of a prediction is written: the `top` classes, and all `probabilities` if true."""

    top: int = 1
    probabilities: bool = False


class Meaning(NamedTuple):
    """What the outputs of a model mean.

    Attributes:
        classes: names of the C classes, or of the outputs of a regression, or of the mask.
        objective: what the outputs are; None: logits of one class.
        temperature: divides the logits of one class before they become probabilities.
        thresholds: of multi_label: the logit of each class above which it is predicted; None: 0.
    """

    classes: tuple[str, ...]
    objective: Objective | None = None
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    @property
    def kind(self) -> str:
        """one_class, multi_label, regression, segmentation or retrieval."""
        return self.objective.kind if self.objective else "one_class"

    @property
    def side(self) -> int:
        """Height and width of a mask, in pixels; 0: the outputs are no masks."""
        return (self.objective.side or 0) if self.objective else 0

    @property
    def width(self) -> int:
        """The number of outputs for a sample."""
        return self.side**2 or len(self.classes)

    def outputs(self, logits: Logits) -> Outputs:
        """Probabilities: of one class they sum to one; of masks [N, H, W]. Or numbers.

        Args:
            logits: of the model, [N, C].
        """
        if self.kind in ("regression", "retrieval"):
            return logits
        if self.kind == "multi_label":
            found: Outputs = expit(logits)
            return found.astype(np.float32)
        if self.kind == "segmentation":
            found = expit(logits).astype(np.float32)
            return found.reshape(-1, self.side, self.side)
        # In float32, as the leaderboard's NLL has it.
        found = softmax(logits / np.float32(self.temperature), axis=1)
        return found.astype(np.float32)

    def predicted(self, logits: Logits) -> Any:
        """The answers: names of classes, tuples of them, numbers, or masks.

        Args:
            logits: of the model, [N, C].

        Returns:
            One class: a list of N names. multi_label: a list of N tuples of names. Regression:
            float32 [N, D]. Segmentation: bool [N, H, W]. Retrieval: embeddings, float32 [N, D].
        """
        if self.kind == "segmentation":
            return (logits > 0).reshape(-1, self.side, self.side)
        if self.kind in ("regression", "retrieval"):
            return logits
        if self.kind == "multi_label":
            has = logits > np.asarray(self.thresholds or 0.0)
            return [tuple(self.classes[k] for k in np.flatnonzero(row)) for row in has]
        return [self.classes[row] for row in logits.argmax(axis=1)]

    def check(self, wanted: Wanted) -> None:
        """Raise ConfigError if something is wanted that these outputs do not have."""
        if self.kind != "one_class" and wanted.top > 1:
            raise ConfigError(
                f"--top {wanted.top}: the most probable classes are those of one class for each "
                f"input; this model is of {self.kind}. Leave --top out, or write --probabilities."
            )
        if self.kind == "regression" and wanted.probabilities:
            raise ConfigError("--probabilities: the outputs of a regression are numbers.")
        if self.kind == "retrieval" and wanted.probabilities:
            raise ConfigError("--probabilities: embeddings have none; inner products rank texts.")
        if self.kind == "segmentation" and wanted.probabilities:
            raise ConfigError(
                f"--probabilities: a table has no {self.side} x {self.side} of them for an image; "
                "`soupray.load(...).predict_proba` returns them as an array."
            )

    def columns(self, wanted: Wanted) -> dict[str, type]:
        """The columns of `rows`, with the type of each."""
        columns: dict[str, type] = {"input": str}
        if self.kind == "segmentation":
            return columns | MASK_COLUMNS
        if self.kind == "retrieval":
            return columns | {"embedding": str}
        if self.kind == "regression":
            return columns | dict.fromkeys(self.classes, float)
        if self.kind == "multi_label":
            columns["classes"] = str
        else:
            for place in range(1, min(wanted.top, len(self.classes)) + 1):
                number = "" if place == 1 else f"_{place}"
                columns |= {f"class{number}": str, f"probability{number}": float}
        if wanted.probabilities:
            columns |= {f"p({name})": float for name in self.classes}
        return columns

    def rows(self, names: list[str], logits: Logits, wanted: Wanted) -> list[dict[str, Any]]:
        """The rows to write, with the columns of `columns`.

        Several classes are joined by SEVERAL.

        Args:
            names: of the N inputs.
            logits: of the model, [N, C].
            wanted: what is written.
        """
        columns, outputs = self.columns(wanted), self.outputs(logits)
        if self.kind == "segmentation":
            masks = zip(names, map(_written, self.predicted(logits)), strict=True)
            return [dict(zip(columns, [name, *cells], strict=True)) for name, cells in masks]
        if self.kind == "retrieval":
            cells = (" ".join(map(str, row)) for row in logits)
            return [
                dict(zip(columns, pair, strict=True)) for pair in zip(names, cells, strict=True)
            ]
        said = self.predicted(logits)
        rows = []
        for name, row, answer in zip(names, outputs, said, strict=True):
            values: list[Any] = [name]
            if self.kind == "regression":
                values += row.tolist()
            elif self.kind == "multi_label":
                values.append(SEVERAL.join(answer))
            else:
                for k in np.argsort(-row, kind="stable")[: wanted.top]:
                    values += [self.classes[k], float(row[k])]
            values += [float(p) for p in row] if wanted.probabilities else []
            rows.append(dict(zip(columns, values, strict=True)))
        return rows

    def counted(self, logits: Logits) -> Counter[str]:
        """The number of inputs by predicted class; empty where there are no classes."""
        if self.kind in ("regression", "segmentation", "retrieval"):
            return Counter()
        if self.kind == "multi_label":
            return Counter(name for names in self.predicted(logits) for name in names)
        return Counter(self.predicted(logits))


def _written(mask: Mask) -> tuple[str, str, float]:
    """The values of MASK_COLUMNS for a mask [H, W]."""
    return f"{mask.shape[1]}x{mask.shape[0]}", run_lengths(mask), float(mask.mean())


def run_lengths(mask: Mask) -> str:
    """A mask as text: the lengths of its runs of equal pixels, with spaces between them.

    Pixels are taken row by row from the top left. The first run is of pixels outside the mask; it
    has length 0 if the first pixel is in the mask.

    Args:
        mask: [H, W].
    """
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return " ".join(map(str, np.diff(ends, prepend=0).tolist()))


MASK_COLUMNS: dict[str, type] = {"size": str, "mask": str, "share": float}
"""Of a mask, in a table: WIDTHxHEIGHT, its `run_lengths`, and the share of pixels in it."""


SEVERAL = "|"
"""Between the classes of an input, in a table."""
