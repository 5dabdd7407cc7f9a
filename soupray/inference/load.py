"""Load the model of a leaderboard entry."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from soupray.core.errors import ConfigError, InputError, NotFound
from soupray.data.building import look_of_evaluation
from soupray.inference.inputs import ImageReader, Reader, TextReader
from soupray.inference.model import Model, Runs
from soupray.inference.predictor import ModelSource, Predictor
from soupray.inference.what import Found, find
from soupray.reporting.model_folder import file_of, folder_weights, moved_specs
from soupray.reporting.recipe_file import RecipeFile, specs_of, weights_of
from soupray.services.home import home_at
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import CaptionsSpec, TextSpec
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import recorded_task


def load(
    what: str | Path,
    *,
    home: str | Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    calibrated: bool = False,
) -> Model:
    """Load the model of a leaderboard entry: a single model, a soup, an ensemble or VRF.

    Args:
        what: the path of a `*.recipe.json` file or of a model folder, `SWEEP:ENTRY`,
            `SWEEP@champion`, or a model in MLflow's registry, `models:/NAME@ALIAS`. SWEEP is the
            name of a sweep of this home, or the path of a spec.
        home: folder with the embedded store, if the sweep used it; None for the default home.
        device: `cpu`, `cuda` or `cuda:N`; None for a GPU if there is one.
        batch_size: samples in a forward pass; None for that of the evaluation. Another number
            changes low bits of the results.
        calibrated: divide logits by the temperature that `soup` fitted on held-out data before
            they become probabilities. False: the probabilities are those of the leaderboard.

    Returns:
        The model: `predict`, `predict_proba`, `logits`, `classes`, `preprocess`, `summary`.

    Raises:
        ConfigError: `what` names nothing, the file is not a recipe file, there is no such device,
            or `calibrated` and an older soupray made the entry, without a temperature.
        NotFound: there is no such entry yet, a checkpoint is no longer in the store, or the store
            is not on this machine.
        ChecksumMismatch: the stored bytes of a checkpoint have changed, or the weights of the soup
            differ from those that the recipe recorded.
        CheckpointError: the weights are not finite, or do not fit the model.
    """
    at = home_at(home)
    model = load_found(find(str(what), at), at, device, batch_size)
    return model.calibrated() if calibrated else model


def load_found(found: Found, home: Path, device: str | None, batch_size: int | None) -> Model:
    """Load a model whose recipe is known; errors as of `load`.

    Args:
        found: the recipe, and its model folder if there is one.
        home: folder for the state of this machine.
        device: as in `load`.
        batch_size: as in `load`.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: it is at least 1.")
    here, recipe = found_device(device), found.recipe
    sources = sources_of(found, home)
    predictor = Predictor(recipe, sources, here, batch_size)
    spec = _specs(found)[""]
    reader = _reader(spec, recipe, sources[""], home)
    runs = Runs(here, batch_size or sources[""].setting.batch_size)
    return Model(recipe, predictor, reader, runs, _captions_reader(spec, sources[""].task))


def sources_of(found: Found, home: Path) -> dict[str, ModelSource]:
    """Return where the models of a recipe come from.

    Args:
        found: the recipe, and its model folder if there is one.
        home: folder for the state of this machine.

    Returns:
        Sources by checkpoint for checkpoints of other specs; the key "" has that of all others.
    """
    recipe, folder = found

    @functools.cache
    def source(spec: SweepSpec) -> ModelSource:
        return _stored(spec, recipe, home) if folder is None else _in_folder(spec, recipe, folder)

    return {checkpoint: source(spec) for checkpoint, spec in _specs(found).items()}


def _specs(found: Found) -> dict[str, SweepSpec]:
    recipe, folder = found
    return specs_of(recipe) if folder is None else moved_specs(recipe, folder)


def found_device(device: str | None) -> str:
    """Return the device to use.

    Args:
        device: as in `load`.

    Raises:
        ConfigError: torch does not have it.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return "cuda" if there else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device {device!r}: write cpu, cuda or cuda:N.")
    if kind == "cuda" and int(number or 0) >= there:
        raise ConfigError(
            f"device {device!r}: torch sees {there} GPUs here. Leave `device` out to use what is "
            "there, or install a torch with CUDA."
        )
    return device


def _stored(spec: SweepSpec, recipe: RecipeFile, home: Path) -> ModelSource:
    """Return the source of the models of a spec, averaged here from the store's checkpoints."""
    place = find_place(spec, home)
    found = Checkpoints(place.open_store(), place.folder / "weights")
    return ModelSource(
        recorded_task(spec.task),
        lambda member: weights_of(member, recipe, found),
        found.load_blob,
        spec.setting,
        spec.objective == "retrieval",
    )


def _in_folder(spec: SweepSpec, recipe: RecipeFile, folder: Path) -> ModelSource:
    """Return the source of the models of a spec, averaged already in a model folder."""
    return ModelSource(
        recorded_task(spec.task),
        lambda member: folder_weights(folder, file_of(member, recipe)),
        lambda sha256: folder_weights(folder, sha256),
        spec.setting,
        spec.objective == "retrieval",
    )


def _captions_reader(spec: SweepSpec, task: Any) -> TextReader | None:
    """Return the reader of captions of a model that reads images too; None for other models."""
    if not isinstance(spec.data, CaptionsSpec):
        return None
    most = (spec.data.max_bytes, task.pairs.tokens)
    return TextReader(most, spec.data.on_long == "cut", task.pairs.lengths)


def _reader(spec: SweepSpec, recipe: RecipeFile, source: ModelSource, home: Path) -> Reader:
    """Return the reader of a model's inputs.

    Args:
        spec: of the model.
        recipe: of the model.
        source: has the tokenizer of a text model.
        home: has the key of the embedded store, whose objects may be inputs.
    """
    if isinstance(spec.data, TextSpec):
        from soupray.tasks.transformers import TextTask

        assert isinstance(source.task, TextTask)
        most = (spec.data.max_bytes, source.task.max_tokens)
        return TextReader(most, spec.data.on_long == "cut", source.task.lengths)

    def fetch(url: str) -> bytes:
        folder, _, name = url.rpartition("/")
        if not folder or not name:
            raise InputError(f"{url!r} names no object.")
        with suppress(NotFound):  # a model folder needs no store
            place = find_place(spec, home)
            if url.startswith(place.storage):
                return open_store(folder, place.read_credentials()).get(name)
        return open_store(folder).get(name)

    return ImageReader(look_of_evaluation(spec, recipe.shape), fetch)
