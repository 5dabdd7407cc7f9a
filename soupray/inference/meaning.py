"""What the outputs of a model mean to its user: probabilities, labels or numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from soupray.core.arrays import Logits
from soupray.core.errors import ConfigError
from soupray.core.records import Objective

Outputs = npt.NDArray[np.float32]
"""float32 [N, C]: probabilities, or the numbers of a regression."""


class Wanted(NamedTuple):
    """What of a prediction is written: the `top` classes, and all `probabilities` if true."""

    top: int = 1
    probabilities: bool = False


class Meaning(NamedTuple):
    """What the outputs of a model mean.

    Attributes:
        classes: names of the C classes, or of the outputs of a regression.
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
        """one_class, multi_label or regression."""
        return self.objective.kind if self.objective else "one_class"

    def outputs(self, logits: Logits) -> Outputs:
        """Probabilities: of one class they sum to one. Or the numbers of a regression.

        Args:
            logits: of the model, [N, C].
        """
        if self.kind == "regression":
            return logits
        if self.kind == "multi_label":
            found: Outputs = expit(logits)
            return found.astype(np.float32)
        # In float32, as the leaderboard's NLL has it.
        found = softmax(logits / np.float32(self.temperature), axis=1)
        return found.astype(np.float32)

    def predicted(self, logits: Logits) -> Any:
        """The answers: names of classes, tuples of them, or numbers.

        Args:
            logits: of the model, [N, C].

        Returns:
            One class: a list of N names. multi_label: a list of N tuples of names. Regression:
            float32 [N, D].
        """
        if self.kind == "regression":
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

    def columns(self, wanted: Wanted) -> dict[str, type]:
        """The columns of `rows`, with the type of each."""
        columns: dict[str, type] = {"input": str}
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
        """The number of inputs by predicted class; empty for a regression."""
        if self.kind == "regression":
            return Counter()
        if self.kind == "multi_label":
            return Counter(name for names in self.predicted(logits) for name in names)
        return Counter(self.predicted(logits))


SEVERAL = "|"
"""Between the classes of an input, in a table."""
