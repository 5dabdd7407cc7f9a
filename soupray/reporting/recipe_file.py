"""Recipe files: a small JSON file from which the exact weights of a soup can be rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from soupray.core.candidates import (
    Candidate,
    OutputCandidate,
    WeightCandidate,
    check_temperatures,
    is_estimated,
)
from soupray.core.errors import (
    CheckpointError,
    ChecksumMismatch,
    ConfigError,
    NotFound,
    WeightsGone,
    one_line,
)
from soupray.core.names import Sha256
from soupray.core.records import BlobRef, Record, decode
from soupray.evaluation.freed import are_gone
from soupray.evaluation.live_model import about
from soupray.maths.weights import Mixer
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec, parse_data
from soupray.store.checkpoints import Checkpoints
from soupray.store.manifests import was_freed
from soupray.store.weights_file import digest_of, sha256_of, write_weights

FORMAT: Literal[1] = 1
"""Version of the form of recipe files."""


class Foreign(Record, frozen=True, kw_only=True):
    """Checkpoints of an ensemble that come from the pool of another spec, with that spec."""

    checkpoints: tuple[Sha256, ...]
    spec: dict[str, Any]


class RecipeFile(Record, frozen=True, kw_only=True):
    """How the model of a leaderboard entry is made.

    `sha256` is the digest of the safetensors file that `rebuild` writes; None for an ensemble,
    which has several models, and in some files of older versions. `digests` are those of an
    ensemble's soups, by the digest of the soup. `shape` is that of one sample of test: [C, H, W],
    or [L] for texts. `temperature` is that of `ranking.Calibrated`; None in files of older
    versions. `thresholds` are those of `Entry`; None but for multi_label.

    `ingredients` names the checkpoints for readers: the trial's key, zero_shot or init. `spec`
    gives the store and the model; it contains no secret. `statistics` are the estimated BatchNorm
    buffers with which models were evaluated, by the digest of the model.
    """

    format: Literal[1] = FORMAT
    name: str
    recipe: str
    options: dict[str, str | int | float]
    candidate: Candidate
    ingredients: dict[Sha256, str]
    statistics: dict[Sha256, BlobRef]
    sha256: Sha256 | None
    spec: dict[str, Any]
    foreign: tuple[Foreign, ...] = ()
    digests: dict[Sha256, Sha256] = msgspec.field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    temperature: float | None = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse (ValueError) a digest that an ensemble does not have, and missing statistics."""
        if self.temperature is not None:
            check_temperatures([self.temperature])
        if self.sha256 is not None and isinstance(self.candidate, OutputCandidate):
            raise ValueError("an ensemble has several models, and no sha256 of one file")
        for model in self.candidate.members:
            if is_estimated(model) and model.digest not in self.statistics:
                raise ValueError(
                    f"model {model.digest[:12]} has estimated BatchNorm statistics, and the file "
                    "does not name them"
                )


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file, which anybody may have written.

    Raises:
        ConfigError: it is missing, not valid, or of another version.
    """
    try:
        data = path.read_bytes()
        return decode(data, RecipeFile)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        if (written := _format_of(data)) != FORMAT:
            raise ConfigError(
                f"{path}: a recipe file of format {written}; this version of soupray reads format "
                f"{FORMAT}. Use the version that wrote it."
            ) from error
        raise ConfigError(
            f"{path}: not a recipe file of soupray: {one_line(error)}. Recipe files are the "
            "*.recipe.json beside a leaderboard."
        ) from error


class _Versioned(msgspec.Struct):
    format: int = FORMAT


def _format_of(data: bytes) -> int:
    try:
        return decode(data, _Versioned).format
    except msgspec.MsgspecError:
        return FORMAT  # it is damaged, or something else


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
    part.rename(output)
    return sha256


def _refuse_freed(recipe: RecipeFile, checkpoints: Checkpoints, error: NotFound) -> None:
    """Raise WeightsGone if weights of ingredients were let go."""
    names = sorted({*recipe.ingredients.values()})
    gone = [one for one in names if was_freed(checkpoints.store, one)]
    if gone:
        raise WeightsGone(f"{recipe.name}: {are_gone(gone)}") from error


def _one_model(recipe: RecipeFile) -> WeightCandidate:
    candidate = recipe.candidate
    if isinstance(candidate, OutputCandidate):
        raise ConfigError(
            f"{recipe.name} is an ensemble of {len(candidate.members)} models: there are no "
            "weights to write. Use it with soupray.load, or export it: `soupray export --format "
            "onnx`."
        )
    return candidate


def _checkpoints(place: Place) -> Checkpoints:
    return Checkpoints(place.open_store(), place.folder / "weights")


def weights_of(
    member: WeightCandidate, recipe: RecipeFile, checkpoints: Checkpoints
) -> dict[str, torch.Tensor]:
    """Return all tensors of one model of the recipe, exactly as they were evaluated.

    Raises:
        NotFound: an ingredient is no longer in the store.
        WeightsGone: the weights of an ingredient were let go.
        ChecksumMismatch: the weights differ from those that the recipe recorded.
        CheckpointError: the weights are not finite, or the statistics are of another model.
    """
    try:
        weights = dict(Mixer(checkpoints.open).tensors(member))
    except NotFound as error:
        _refuse_freed(recipe, checkpoints, error)
        raise
    if member.digest in recipe.statistics:
        statistics = checkpoints.load_blob(recipe.statistics[member.digest].sha256)
        for name, tensor in statistics.items():
            if name not in weights or weights[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{recipe.name}: its BatchNorm statistics have a tensor {name!r} "
                    f"{list(tensor.shape)}, which the model has not: they are those of another "
                    "model. Use the recipe file as soupray wrote it."
                )
        weights |= statistics
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{recipe.name}: tensor {name!r} is not finite. An ingredient has NaN or infinite "
                "weights: make the soup again without it (`soupray check` names it)."
            )
    wanted = recipe.digests.get(member.digest, recipe.sha256)
    if wanted is None:
        return weights
    if (sha256 := digest_of(weights, about(member))) != wanted:
        raise ChecksumMismatch(
            f"{recipe.name}: its weights have SHA-256 {sha256}, but the recipe recorded "
            f"{wanted}. The ingredients are verified, so that the recipe was edited, or the "
            "code that averages them changed: use the version of soupray that wrote the recipe."
        )
    return weights
