"""Recipe files: a small JSON file from which the exact weights of a soup can be rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from soupray.core.candidates import Candidate, OutputEnsemble, VRFEnsemble, WeightCandidate
from soupray.core.errors import ChecksumMismatch, ConfigError, one_line
from soupray.core.records import BlobRef, Record, decode
from soupray.evaluation.local import about
from soupray.maths.weights import Mixer
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec, parse_data
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import sha256_of, write_weights
from soupray.tasks import task_of


class Foreign(Record, frozen=True, kw_only=True):
    """Checkpoints of an ensemble that come from the pool of another spec, with that spec."""

    checkpoints: tuple[str, ...]
    spec: dict[str, Any]


class RecipeFile(Record, frozen=True, kw_only=True):
    """How a soup is made. `sha256` is the digest of its safetensors file, or None if not made yet.

    `ingredients` names the checkpoints for readers: the trial's key, zero_shot or init. `spec`
    gives the store and the model; it contains no secret. `statistics` are the BatchNorm buffers
    with which soups were evaluated, by the digest of the soup.
    """

    format: Literal[1] = 1
    name: str
    recipe: str
    options: dict[str, str | int | float]
    candidate: Candidate
    ingredients: dict[str, str]
    statistics: dict[str, BlobRef]
    sha256: str | None
    spec: dict[str, Any]
    foreign: tuple[Foreign, ...] = ()


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file. Raises ConfigError if it is missing or not valid."""
    try:
        return decode(path.read_bytes(), RecipeFile)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path}: not a recipe file of soupray: {one_line(error)}. Recipe files are the "
            "*.recipe.json beside a leaderboard."
        ) from error


def spec_of(recipe: RecipeFile) -> SweepSpec:
    """Return the spec with which the recipe was made."""
    return parse_data(recipe.spec, f"the spec in recipe {recipe.name}")


def specs_of(recipe: RecipeFile) -> dict[str, SweepSpec]:
    """Return the specs of an ensemble's checkpoints.

    Returns:
        Specs by checkpoint for checkpoints of other specs; the key "" has the spec of all others.
    """
    specs = {"": spec_of(recipe)}
    for foreign in recipe.foreign:
        spec = parse_data(foreign.spec, f"a spec in recipe {recipe.name}")
        specs |= dict.fromkeys(foreign.checkpoints, spec)
    return specs


def rebuild(recipe: RecipeFile, place: Place, output: Path) -> str:
    """Write the safetensors file of the soup again.

    Args:
        recipe: the recipe.
        place: the store.
        output: the file to write.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        ConfigError: the recipe is an ensemble, which has several models.
        ChecksumMismatch: the bytes differ from the first time.
        NotFound: an ingredient is no longer in the store.
    """
    candidate = _one_model(recipe)
    weights = weights_of(candidate, recipe, _checkpoints(place))
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    write_weights(part, weights, about(candidate))
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


def export(recipe: RecipeFile, place: Place, folder: Path) -> str:
    """Write the soup in the format of the library of its task.

    Args:
        recipe: the recipe.
        place: the store.
        folder: where the files are written.

    Returns:
        The code with which the library loads the soup.

    Raises:
        ConfigError: the recipe is an ensemble, which has several models.
        NotFound: an ingredient is no longer in the store.
    """
    weights = weights_of(_one_model(recipe), recipe, _checkpoints(place))
    folder.mkdir(parents=True, exist_ok=True)
    return task_of(spec_of(recipe).task).export(weights, folder)


def _one_model(recipe: RecipeFile) -> WeightCandidate:
    candidate = recipe.candidate
    if isinstance(candidate, OutputEnsemble | VRFEnsemble):
        raise ConfigError(
            f"{recipe.name} is an ensemble of {len(candidate.members)} models: there are no "
            "weights to write. Use it with soupray.load(RECIPE)."
        )
    return candidate


def _checkpoints(place: Place) -> Checkpoints:
    return Checkpoints(place.open_store(), place.folder / "weights")


def weights_of(
    member: WeightCandidate, recipe: RecipeFile, checkpoints: Checkpoints
) -> dict[str, torch.Tensor]:
    """Return all tensors of one model of the recipe, exactly as they were evaluated."""
    weights = dict(Mixer(checkpoints.open).tensors(member))
    if member.digest in recipe.statistics:
        weights |= checkpoints.load_blob(recipe.statistics[member.digest].sha256)
    return weights
