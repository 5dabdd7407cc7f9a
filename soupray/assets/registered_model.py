"""How MLflow loads a registered model. MLflow copies this file beside the model and runs it there.

It holds no weights and nothing pickled: the weights are in the model folder beside it.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class RegisteredModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model of a leaderboard. It reads one column, `image` (bytes of image files) or `text`."""

    def load_context(self, context: Any) -> None:
        """Load the model folder, on a GPU if there is one."""
        from soupray.inference.load import load

        self.model = load(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the columns of `soupray predict`.

        One class: class, probability, class_2, ..., p(CLASS). Several classes: classes, p(CLASS).
        Numbers: a column for each output. Embeddings: their numbers, with spaces between them.

        Args:
            context: what `load_context` got.
            model_input: a row for each image or text.
            params: `top`: number of classes; `probabilities`: a column for each class;
                `calibrated`: with the temperature, or the thresholds, of the entry.
        """
        from soupray.core.errors import SouprayError
        from soupray.inference.meaning import Wanted

        asked = params or {}
        wanted = Wanted(max(1, asked.get("top", 1)), asked.get("probabilities", False))
        (column,) = model_input.columns
        try:
            self.model.meaning.check(wanted)
            model = self.model.calibrated() if asked.get("calibrated") else self.model
            found = model.logits(list(model_input[column]))
        except SouprayError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        rows = model.meaning.rows([""] * len(found), found, wanted)
        columns = list(model.meaning.columns(wanted))
        return pd.DataFrame(rows, columns=columns).drop(columns="input")


mlflow.models.set_model(RegisteredModel())
