"""Recipe files: a few hundred bytes from which a soup's exact weights can be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from soupray.checkpoints import Checkpoints, sha256_of, write_weights
from soupray.errors import CheckpointError, ChecksumMismatch, ConfigError
from soupray.evaluation.local import about
from soupray.maths.weights import Mixer
from soupray.records import Candidate, Record, decode
from soupray.spec import SweepSpec, parse_data
from soupray.wiring import Place

Probabilities = npt.NDArray[np.float32]


class RecipeFile(Record, frozen=True, kw_only=True):
    """What a soup is made of. `sha256` is that of its safetensors file, once it was made.

    `ingredients` names the checkpoints for people: trial key, zero_shot or init. `spec` says where
    the store is and what the model is; it holds no secret.
    """

    format: int = 1
    name: str
    recipe: str
    options: dict[str, str | int | float]
    candidate: Candidate
    ingredients: dict[str, str]
    sha256: str | None
    spec: dict[str, Any]


def read_recipe(path: Path) -> RecipeFile:
    """Raises ConfigError if the file is missing or not a recipe file."""
    try:
        return decode(path.read_bytes(), RecipeFile)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path}: not a recipe file of soupray: {error}. Recipe files are the *.recipe.json "
            "beside a leaderboard."
        ) from error


def spec_of(recipe: RecipeFile) -> SweepSpec:
    """The spec that the recipe was made under."""
    return parse_data(recipe.spec, f"the spec in recipe {recipe.name}")


def rebuild(recipe: RecipeFile, place: Place, output: Path) -> str:
    """Write the soup's safetensors file again; returns its SHA-256.

    Raises:
        ChecksumMismatch: the bytes are not those of the first time.
        NotFound: an ingredient is no longer in the store.
    """
    checkpoints = Checkpoints(place.open_store(), Path(place.cache) / "weights")
    weights = dict(Mixer(checkpoints.open).tensors(recipe.candidate))
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    write_weights(part, weights, about(recipe.candidate))
    sha256 = sha256_of(part)
    if recipe.sha256 not in (None, sha256):
        part.unlink()
        raise ChecksumMismatch(
            f"{output}: SHA-256 {sha256}, but the recipe {recipe.name} recorded {recipe.sha256}. "
            "The ingredients are verified, so that the code that averages them must have changed: "
            "use the version of soupray that wrote the recipe."
        )
    part.rename(output)
    return sha256


def load(recipe: str | Path, home: Path | None = None) -> Callable[[Any], Probabilities]:
    """The model of a leaderboard entry, as a function from a batch to probabilities.

    Args:
        recipe: a `*.recipe.json`.
        home: where the embedded store is, if the sweep used it; default as everywhere.

    Returns:
        A function of uint8 images [N, 1 or 3, H, W] (array or tensor) that returns float32
        probabilities [N, C]. Batches of any size; the classes are in the spec's order.

    Raises:
        ConfigError, NotFound, ChecksumMismatch: as `rebuild`.
    """
    from soupray.home import default_home
    from soupray.settling import settle
    from soupray.tasks import task_of

    read = read_recipe(Path(recipe))
    spec = spec_of(read)
    place = settle(spec, home or default_home()).place
    checkpoints = Checkpoints(place.open_store(), Path(place.cache) / "weights")
    task = task_of(spec.task)
    model = task.model()
    try:
        model.load_state_dict(dict(Mixer(checkpoints.open).tensors(read.candidate)))
    except RuntimeError as error:
        raise CheckpointError(f"{recipe}: the weights do not fit the model: {error}") from error
    model.eval()

    @torch.inference_mode()
    def probabilities(batch: Any) -> Probabilities:
        images = torch.as_tensor(np.asarray(batch))
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ConfigError(
                f"a batch is uint8 images [N, 1 or 3, H, W], not {images.dtype} "
                f"{list(images.shape)}."
            )
        answer: Probabilities = model(task.inputs(images)).softmax(dim=1).numpy()
        return answer

    return probabilities
