"""Load the model of a leaderboard entry."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from soupray.core.errors import ConfigError, InputError
from soupray.data.building import look_of_evaluation
from soupray.inference.inputs import ImageReader, Reader, TextReader
from soupray.inference.model import Model, Runs
from soupray.inference.predictor import ModelSource, Predictor
from soupray.inference.what import find_recipe
from soupray.reporting.recipe_file import RecipeFile, spec_of, specs_of
from soupray.services.home import default_home
from soupray.services.place import Place, find_place
from soupray.spec.data import TextSpec
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of


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
        what: the path of a `*.recipe.json` file, `SWEEP:ENTRY`, `SWEEP@champion`, or a model in
            MLflow's registry, `models:/NAME@ALIAS`. SWEEP is the name of a sweep of this home, or
            the path of a spec.
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
    at = Path(home).expanduser() if home is not None else default_home()
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: it is at least 1.")
    recipe, here = find_recipe(str(what), at), found_device(device)
    temperature = recipe.temperature if calibrated else 1.0
    if temperature is None:
        raise ConfigError(
            f"{what}: calibrated = True, but its recipe has no temperature, because an older "
            "soupray wrote it. Run `soupray soup` again: it evaluates nothing again."
        )
    spec = spec_of(recipe)

    @functools.cache
    def source(spec: SweepSpec) -> ModelSource:
        place = find_place(spec, at)
        weights = Checkpoints(place.open_store(), place.folder / "weights")
        return ModelSource(task_of(spec.task), weights, spec.setting)

    sources = {digest: source(spec) for digest, spec in specs_of(recipe).items()}
    predictor = Predictor(recipe, sources, here, batch_size)
    reader = reader_of(recipe, sources[""], find_place(spec, at))
    runs = Runs(here, batch_size or sources[""].setting.batch_size, temperature)
    return Model(recipe, predictor, reader, runs)


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


def reader_of(recipe: RecipeFile, source: ModelSource, place: Place) -> Reader:
    """Return the reader of a model's inputs.

    Args:
        recipe: of the model.
        source: has the tokenizer of a text model.
        place: the store, whose objects may be inputs.
    """
    spec = spec_of(recipe)
    if isinstance(spec.data, TextSpec):
        from soupray.tasks.transformers import TextTask

        assert isinstance(source.task, TextTask)
        most = (spec.data.max_bytes, source.task.max_tokens)
        return TextReader(most, spec.data.on_long == "cut", source.task.lengths)

    def fetch(url: str) -> bytes:
        folder, _, name = url.rpartition("/")
        if not folder or not name:
            raise InputError(f"{url!r} names no object.")
        keys = place.read_credentials() if url.startswith(place.storage) else None
        return open_store(folder, keys).get(name)

    return ImageReader(look_of_evaluation(spec, recipe.shape), fetch)
