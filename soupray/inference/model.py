"""The model of a leaderboard entry, ready for use: a single model, a soup, an ensemble or VRF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from soupray.core.arrays import Images, Logits, Probabilities
from soupray.core.errors import ConfigError
from soupray.core.texts import pack
from soupray.inference.inputs import Read, Reader, all_read
from soupray.inference.meaning import Meaning
from soupray.inference.network import Network, network_of
from soupray.inference.predictor import Predictor
from soupray.reporting.recipe_file import RecipeFile, spec_of

CHUNK = 1024
"""About the number of inputs that are in memory at a time."""


class Runs(NamedTuple):
    """How a model runs: the `device`, `batch_size` samples in a pass, and if it is `calibrated`."""

    device: str
    batch_size: int
    calibrated: bool = False


class Model:
    """A model of a leaderboard; `soupray.load` makes it.

    Images and texts are prepared as in the evaluation, and run in batches of the same size, so that
    its answers are those of the leaderboard. Several threads may use one model.

    Attributes:
        name: the entry, for example `greedy`.
        classes: names of the classes, in the order of the columns of all results; of a regression,
            names of the outputs.
        device: where it runs, `cpu` or `cuda`.
        batch_size: samples in a forward pass.
        temperature: divides the logits before they become probabilities; 1 unless the model was
            loaded with `calibrated`.
        meaning: of its outputs.
        reader: prepares the inputs; `reader.counted.done` counts what was done to them.
        recipe: the recipe file as a record: ingredients, digests, spec.
    """

    def __init__(
        self,
        recipe: RecipeFile,
        predictor: Predictor,
        reader: Reader,
        runs: Runs,
        captions: Reader | None = None,
    ) -> None:
        """Join the parts of a model. Use `soupray.load`."""
        self.recipe, self.reader, self._captions = recipe, reader, captions
        self.device, self.batch_size, calibrated = runs
        self.name, self._spec = recipe.name, spec_of(recipe)
        self.classes = tuple(self._spec.task.classes)
        self.temperature = (recipe.temperature or 1.0) if calibrated else 1.0
        self.meaning = Meaning(
            self.classes,
            self._spec.targets or None,
            self.temperature,
            recipe.thresholds if calibrated else None,
        )
        self._predictor = predictor

    def preprocess(self, inputs: Any) -> Images:
        """Return inputs in the form in which the model was evaluated, before normalisation.

        Args:
            inputs: as in `predict_proba`.

        Returns:
            uint8: images [N, C, H, W] with values from 0 to 255, or the bytes of texts [N, L].

        Raises:
            InputError: inputs that cannot be read; the message names each.
        """
        given = self.reader.split(inputs)
        return all_read(self.reader.read(given), given, 0)

    def logits(self, inputs: Any) -> Logits:
        """Return the logits, float32 [N, C]; arguments and errors as in `predict_proba`."""
        given = self.reader.split(inputs)
        if len(given) == 0:
            return self._nothing()
        found, first = [], 0
        for part, read in self.parts(given):
            found.append(self.run(all_read(read, part, first)))
            first += len(part)
        return np.concatenate(found)

    def predict_proba(self, inputs: Any) -> Probabilities:
        """Return the probabilities of each class.

        Args:
            inputs: N images or N texts. Images are a list of paths, URLs of objects in the store,
                bytes of image files, Pillow images or uint8 arrays [H, W, C]; or one uint8 array
                [N, 1 or 3, H, W]. Texts are a list of str. One path, image or text alone is a batch
                of one.

        Returns:
            float32 [N, C], classes in the order of `classes`. Each row sums to one, except where a
            sample may have several classes (`objective: multi_label`). Of masks the probability of
            each pixel, [N, H, W], in the size of the evaluation.

        Raises:
            InputError: inputs that cannot be read; the message names each.
            ConfigError: the model is of a regression or of retrieval; `predict` returns numbers.
        """
        if self.meaning.kind == "retrieval":
            raise ConfigError(f"{self.name} is of retrieval: use `predict`, it returns embeddings.")
        if self.meaning.kind == "regression":
            raise ConfigError(f"{self.name} is of a regression: use `predict`, it returns numbers.")
        return self.meaning.outputs(self.logits(inputs))

    __call__ = predict_proba

    def predict(self, inputs: Any) -> Any:
        """Return the name of the most probable class of each of the N inputs, a list of str.

        Where a sample may have several classes, the names of those that are predicted, a list of
        tuples. For a regression its numbers, float32 [N, D]. For segmentation masks, bool
        [N, H, W], in the size of the evaluation. For retrieval embeddings, float32 [N, D]: a text
        is a query or a document, and inner products rank documents. A model of images and captions
        reads images; `texts` is the same model for captions.

        Args:
            inputs: as in `predict_proba`.

        Raises:
            InputError: inputs that cannot be read; the message names each.
        """
        return self.meaning.predicted(self.logits(inputs))

    def texts(self) -> Model:
        """Return this model of images and captions, reading texts. Both share their weights.

        Raises:
            ConfigError: the model does not read both.
        """
        if self._captions is None:
            raise ConfigError(
                f"{self.name} reads {self.reader.kind} alone. A model of data of kind captions has "
                "a tower for texts beside that for images."
            )
        runs = Runs(self.device, self.batch_size)
        return Model(self.recipe, self._predictor, self._captions, runs)

    def calibrated(self) -> Model:
        """Return this model with what `soup` fitted on held-out data.

        `predict_proba` then divides the logits by a temperature. Where a sample may have several
        classes, `predict` takes the threshold of each class that has the best F1. The two models
        share their weights.

        Raises:
            ConfigError: it is a regression, gives masks or embeddings, or an older soupray wrote
                the recipe.
        """
        if self.meaning.kind == "segmentation":
            raise ConfigError(
                f"{self.name} gives masks: `soup` fits no temperature and no thresholds to them."
            )
        if self.meaning.kind in ("regression", "retrieval"):
            raise ConfigError(f"{self.name} is of {self.meaning.kind}: it has no probabilities.")
        if self.recipe.temperature is None and self.recipe.thresholds is None:
            raise ConfigError(
                f"{self.name}: its recipe has no temperature, because an older soupray wrote it. "
                "Run `soupray soup` again: it evaluates nothing again."
            )
        runs = Runs(self.device, self.batch_size, True)
        return Model(self.recipe, self._predictor, self.reader, runs)

    @property
    def part(self) -> int:
        """The number of inputs that are in memory at a time: a whole number of batches."""
        return self.batch_size * max(1, CHUNK // self.batch_size)

    def parts(self, given: Any) -> Iterator[tuple[Any, Read]]:
        """Read inputs part by part; a part is a whole number of batches, except the last one.

        Args:
            given: what `reader.split` returned.

        Yields:
            Some of the inputs, and what came of reading them.
        """
        for start in range(0, len(given), self.part):
            part = given[start : start + self.part]
            yield part, self.reader.read(part)

    def run(self, samples: Images) -> Logits:
        """Return the logits [N, C] of samples that `preprocess` returned."""
        if len(samples) == 0:
            return self._nothing()
        return self._predictor.logits(samples)

    def _nothing(self) -> Logits:
        """The outputs for no input. The width of embeddings is that of an input's."""
        if self.meaning.kind == "retrieval":
            return self._predictor.logits(pack([""]))[:0]
        return np.zeros((0, self.meaning.width), np.float32)

    def network(self) -> Network:
        """Return the whole model as one module of torch: images or token ids to logits.

        Raises:
            ConfigError: it cannot be one, as VRF.
        """
        return network_of(self._predictor, self.name, self._spec.task)

    def summary(self) -> str:
        """Return what the model is and what it reads, in a few lines of text."""
        recipe, look = self.recipe, getattr(self.reader, "look", None)
        names = list(recipe.ingredients.values())
        reads = self.reader.what
        if look is not None:
            colours = "grey" if look.channels == 1 else "RGB"
            reads += f"; brought to {look.size} x {look.size} pixels, {colours}"
        passes = len(recipe.candidate.members)
        lines = [
            f"{self.name} of sweep {self._spec.name}: {self._spec.task.kind} "
            f"{getattr(self._spec.task, 'model', '')}, {_models(passes)}",
            f"made of {len(names)}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
            f"reads {reads}",
            _counted(self.classes, self.meaning.kind, self.reader.kind.removesuffix("s")),
            *(["`texts()` is the same model for captions"] if self._captions else []),
            f"runs on {self.device} in batches of {self.batch_size}"
            f"{'' if self.temperature == 1 else f'; temperature {self.temperature:.4g}'}",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return the first line of the summary."""
        return f"<soupray model: {self.summary().splitlines()[0]}>"


def _counted(classes: tuple[str, ...], kind: str, read: str) -> str:
    if kind == "retrieval":
        return f"an embedding of each {read}; inner products rank documents for a query"
    said = f"{len(classes)} classes{', any number of them' if kind == 'multi_label' else ''}"
    if kind == "regression":
        said = f"{len(classes)} output{'s' if len(classes) > 1 else ''}"
    if kind == "segmentation":
        said = "a mask for each image"
    return f"{said}: {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}"


def _models(count: int) -> str:
    return "one model" if count == 1 else f"{count} models whose outputs are joined"
