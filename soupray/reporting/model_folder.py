"""A model folder: the model of a leaderboard entry with all that it needs, without the store.

    recipe.json                    the recipe file
    weights/<sha256>.safetensors   each model, averaged already, and VRF's failure set
    files/<number>/                configuration and tokenizer, where a task reads them from files

`soupray.load` reads the folder. It holds no ingredient. The digests in recipe.json verify all
weights. MLflow's registry has such a folder for each champion.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from msgspec import UNSET

import soupray
from soupray.core.candidates import VRFEnsemble, WeightCandidate, as_trained
from soupray.core.errors import CheckpointError, ChecksumMismatch, ConfigError
from soupray.core.names import inside
from soupray.core.plugins import package_of
from soupray.core.ports import Deployable
from soupray.core.records import encode_pretty
from soupray.data.decoding import png
from soupray.evaluation.live_model import about
from soupray.reporting.recipe_file import RecipeFile, spec_of, specs_of, weights_of
from soupray.services.place import Place
from soupray.spec.plugged_in import TASKS
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import TextSpec
from soupray.spec.task import TorchSpec
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import MappedWeights, Weights, sha256_of, write_weights
from soupray.tasks import reads_from, recorded_task

RECIPE, WEIGHTS, FILES = "recipe.json", "weights", "files"


def is_model_folder(path: Path) -> bool:
    """Return whether a path is a model folder."""
    return (path / RECIPE).is_file()


def write_folder(recipe: RecipeFile, place_of: Callable[[SweepSpec], Place], folder: Path) -> None:
    """Write the model folder of a recipe.

    Args:
        recipe: the recipe.
        place_of: returns the store of a spec.
        folder: where the files go; it is made.

    Raises:
        ConfigError: an older soupray wrote the recipe, without the digest of its weights.
        NotFound: an ingredient is no longer in the store.
        ChecksumMismatch: the weights differ from those that the recipe recorded.
    """
    specs = specs_of(recipe)
    (folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
    for member in recipe.candidate.members:
        sha256 = file_of(member, recipe)
        target = _weights(folder, sha256)
        place = place_of(specs.get(member.checkpoints[0], specs[""]))
        checkpoints = Checkpoints(place.open_store(), place.folder / "weights")
        if as_trained(member):
            shutil.copyfile(checkpoints.fetch(sha256), target)
        else:
            write_weights(target, weights_of(member, recipe, checkpoints), about(member))
    candidate = recipe.candidate
    if isinstance(candidate, VRFEnsemble):
        place = place_of(specs.get(candidate.fine_tuned.checkpoints[0], specs[""]))
        checkpoints = Checkpoints(place.open_store(), place.folder / "weights")
        failures = checkpoints.fetch_blob(candidate.failures.sha256)
        shutil.copyfile(failures, _weights(folder, candidate.failures.sha256))
    for number, spec in enumerate(dict.fromkeys(specs.values())):
        recorded_task(spec.task).write_files(folder / FILES / str(number))
    (folder / RECIPE).write_bytes(encode_pretty(recipe))


def deployable(recipe: RecipeFile, place_of: Callable[[SweepSpec], Place]) -> Deployable:
    """Return the model of a recipe as a registry of models keeps it.

    Args:
        recipe: the recipe.
        place_of: returns the store of a spec.
    """
    spec = spec_of(recipe)
    is_text = isinstance(spec.data, TextSpec)
    size = recipe.shape or ()
    if len(size) != 3:  # of older recipes, and of images with captions; any image can be read
        size = (1, 32, 32)
    example = png(np.full(size[1:], 128, np.uint8)) if not is_text else "a text"
    return Deployable(
        write=lambda folder: write_folder(recipe, place_of, folder),
        reads="text" if is_text else "image",
        example=example,
        answers=answers_of(spec),
        params=_params(spec),
        requirements=_requirements(recipe, spec),
        facts={
            "soupray.sweep": spec.name,
            "soupray.entry": recipe.name,
            "soupray.recipe": recipe.recipe,
            "soupray.ingredients": recipe.ingredients,
            "soupray.coefficients": list(recipe.candidate.coefficients),
            "soupray.sha256": [file_of(m, recipe) for m in recipe.candidate.members],
            "soupray.classes": list(spec.task.classes),
            "soupray.objective": kind_of(spec),
            "soupray.temperature": recipe.temperature,
            "soupray.thresholds": recipe.thresholds and list(recipe.thresholds),
        },
    )


def kind_of(spec: SweepSpec) -> str:
    """Return one_class, multi_label, regression, segmentation or retrieval.

    Args:
        spec: of the model.
    """
    return "one_class" if spec.targets is UNSET else spec.targets.kind


def answers_of(spec: SweepSpec) -> dict[str, type]:
    """Return the columns of the predictions of a model, with the type of each.

    Args:
        spec: of the model.
    """
    if kind_of(spec) == "regression":
        return dict.fromkeys(spec.task.classes, float)
    if kind_of(spec) == "segmentation":
        return {"size": str, "mask": str, "share": float}
    if kind_of(spec) == "retrieval":
        return {"embedding": str}
    if kind_of(spec) == "multi_label":
        return {"classes": str}
    return {"class": str, "probability": float}


def _params(spec: SweepSpec) -> dict[str, int | bool]:
    """What may be asked of a model, with the values that are taken otherwise."""
    if kind_of(spec) in ("regression", "segmentation", "retrieval"):
        return {}
    several: dict[str, int | bool] = {"probabilities": False, "calibrated": False}
    return several if kind_of(spec) == "multi_label" else {"top": 1, **several}


def _requirements(recipe: RecipeFile, spec: SweepSpec) -> list[str]:
    """Return this version of soupray, and those of the libraries on which numbers depend."""
    extras = ["text"] if spec.task.kind == "transformers" else []
    extras += ["cpu"] if isinstance(recipe.candidate, VRFEnsemble) else []
    ours = f"soupray[{','.join(extras)}]" if extras else "soupray"
    library = {"open_clip": "open_clip_torch", "timm": "timm", "transformers": "transformers"}
    own = [library[spec.task.kind]] if spec.task.kind in library else []
    if isinstance(spec.task, TorchSpec) and (package := package_of(TASKS, spec.task.model)):
        own = [package]
    pinned = ["torch", *own, "numpy"]
    # A local version, as in 2.9.0+cpu, is of one package index only.
    versions = {name: version(name).partition("+")[0] for name in pinned}
    return [f"{ours}=={soupray.__version__}", *(f"{n}=={v}" for n, v in versions.items())]


def moved_specs(recipe: RecipeFile, folder: Path) -> dict[str, SweepSpec]:
    """Return the specs of `specs_of`, which read their files in a model folder.

    Args:
        recipe: the recipe of the folder.
        folder: the model folder.
    """
    specs = specs_of(recipe)
    moved = {}
    for number, spec in enumerate(dict.fromkeys(specs.values())):
        task = reads_from(spec.task, folder / FILES / str(number))
        moved[spec] = spec.model_copy(update={"task": task})
    return {checkpoint: moved[spec] for checkpoint, spec in specs.items()}


def folder_weights(folder: Path, sha256: str) -> Weights:
    """Return the tensors of a file in a model folder.

    Args:
        folder: the model folder.
        sha256: digest of the file.

    Raises:
        CheckpointError: there is no such file, or it is not a safetensors file.
        ChecksumMismatch: its bytes are others.
    """
    path = _weights(folder, sha256)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}. The folder is not complete: copy it again, with its "
            f"folder {WEIGHTS}/."
        ) from error
    if found != sha256:
        raise ChecksumMismatch(
            f"{path} has SHA-256 {found}: it was edited, or copied in part. Copy the folder again."
        )
    mapped = MappedWeights(path)
    return {name: mapped[name] for name in mapped.names}


def file_of(member: WeightCandidate, recipe: RecipeFile) -> str:
    """Return the SHA-256 of the file of a model.

    Args:
        member: one of the recipe's models.
        recipe: the recipe.

    Raises:
        ConfigError: an older soupray wrote the recipe, without this digest.
    """
    if as_trained(member):
        return member.checkpoints[0]
    sha256 = recipe.digests.get(member.digest, recipe.sha256)
    if sha256 is None:
        raise ConfigError(
            f"{recipe.name}: an older soupray wrote this recipe, without the digest of its "
            "weights. Run `soupray soup` again: it evaluates nothing again."
        )
    return sha256


def _weights(folder: Path, sha256: str) -> Path:
    return inside(folder / WEIGHTS, f"{sha256}.safetensors")
