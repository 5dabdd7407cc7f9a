"""The model of a leaderboard entry in the formats of other programs.

`library` is what open_clip, timm or transformers load, `hub` is that with a model card for Hugging
Face. `onnx` and `torch` are one graph each, with its preprocessing in it; `graph_files` writes
them. `folder` is what soupray itself loads where the store is not: see `reporting/model_folder.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from soupray.core.candidates import OutputCandidate, VRFEnsemble, WeightCandidate
from soupray.core.errors import ConfigError
from soupray.core.names import slug
from soupray.core.ports import Task
from soupray.core.progress import Progress, Show
from soupray.core.records import Record
from soupray.data.building import look_of_evaluation
from soupray.data.decoding import Look
from soupray.inference.load import load_found, sources_of
from soupray.inference.what import find
from soupray.operations.graph_files import Parity, require_onnx, write_graph
from soupray.operations.model_card import write_card
from soupray.reporting.model_folder import write_folder
from soupray.reporting.recipe_file import RecipeFile, spec_of
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import OpenClipSpec, TransformersSpec
from soupray.store.weights_file import Weights
from soupray.tasks import recorded_task
from soupray.tasks.foreign import ForeignWeights, matched

Format = Literal["library", "onnx", "torch", "hub", "folder"]


class Exported(Record, frozen=True, kw_only=True):
    """An exported model.

    Attributes:
        sweep, entry: of the model.
        format: of the files.
        folder: of the files.
        files: their names.
        loads: a Python expression that loads the model.
        notes: what was done in the evaluation and the library does not do, in sentences.
        parity: how far the logits of a graph are from those of soupray; None for the others.
    """

    sweep: str
    entry: str
    format: Format
    folder: str
    files: tuple[str, ...]
    loads: str
    notes: tuple[str, ...]
    parity: Parity | None = None


def export(
    what: str, home: Path, kind: Format, folder: Path | None = None, show: Show | None = None
) -> Exported:
    """Write the model of a leaderboard entry in another format.

    Args:
        what: names the model, as in `soupray.load`.
        home: folder for the state of this machine.
        kind: the format.
        folder: where the files are written; None: `beside(what)`, with the format at the end.
        show: shows the progress.

    Raises:
        ConfigError: `what` names nothing, or the format cannot have this model; the message says
            which format can. Or a library is missing.
        IncompatibleWeights: the weights are not those of the model in the recipe's spec.
        ChecksumMismatch: the weights differ from those that the recipe recorded.
        EvaluationError: the logits of a graph are too far from those of soupray.
        NotFound: there is no such entry, or an ingredient is no longer in the store.
    """
    if kind == "onnx":
        require_onnx()
    with Progress("export", 3, show) as progress:
        found = find(what, home)
        recipe, spec = found.recipe, spec_of(found.recipe)
        target = folder or beside(what, recipe, "" if kind == "library" else f"-{kind}")
        parity = None
        if kind in ("onnx", "torch"):
            model = load_found(found, home, "cpu", None)
            progress.advance()
            cache = home / "cache" / "data"
            loads, parity = write_graph(model, kind == "onnx", target, cache, progress)
            notes: list[str] = []
        elif kind == "folder":
            write_folder(recipe, lambda other: find_place(other, home), target)
            loads, notes = f"soupray.load({str(target)!r})", []
        else:
            candidate = _one_model(recipe, spec, kind)
            _refuse_other_files(target, kind)
            source = sources_of(found, home)[""]
            weights = source.weights(candidate)
            progress.advance()
            # A model folder has no pre-trained weights, from which a library's other parts come.
            task = source.task if found.folder is None else recorded_task(spec.task)
            loads, notes = _write_library(weights, task, recipe, target)
            progress.advance()
            if kind == "hub":
                write_card(recipe, home, target, notes)
            progress.advance()
    return Exported(
        sweep=spec.name,
        entry=recipe.name,
        format=kind,
        folder=str(target),
        files=tuple(sorted(path.name for path in target.iterdir())),
        loads=loads,
        notes=tuple(notes),
        parity=parity,
    )


def beside(what: str, recipe: RecipeFile, ending: str) -> Path:
    """Return where the results of a model go: beside its recipe file, or into results/SWEEP.

    Args:
        what: names the model, as in `soupray.load`.
        recipe: of the model.
        ending: of the name of the file or folder.
    """
    path = Path(what)
    if path.is_file():
        return path.with_name(path.name.removesuffix(".recipe.json") + ending)
    return Path("results", spec_of(recipe).name, slug(recipe.name) + ending)


def _write_library(
    weights: Weights, task: Task, recipe: RecipeFile, folder: Path
) -> tuple[str, list[str]]:
    """Write what the library of the task loads; return the code that loads it, and the notes."""
    spec = spec_of(recipe)
    matched(ForeignWeights(weights, recipe.name), task.model())
    folder.mkdir(parents=True, exist_ok=True)
    loads = task.export(weights, folder)
    return loads, differences(spec, task, look_of_evaluation(spec, recipe.shape))


def _refuse_other_files(folder: Path, kind: Format) -> None:
    """Refuse (ConfigError) to add to what is in a folder that will be uploaded as a whole."""
    if kind == "hub" and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty, and upload_folder would upload all of it. Name a new folder "
            "with --output, or remove this one."
        )


def _one_model(recipe: RecipeFile, spec: SweepSpec, kind: Format) -> WeightCandidate:
    candidate = recipe.candidate
    if not isinstance(candidate, OutputCandidate):
        return candidate
    graph = not isinstance(candidate, VRFEnsemble)
    instead = "--format onnx or torch writes it as one graph; or use" if graph else "Use"
    count = len(candidate.members)
    raise ConfigError(
        f"{recipe.name} makes its answers from the outputs of {count} model{'s' * (count != 1)}, "
        f"which {spec.task.kind} cannot: --format {kind} is for one model alone. {instead} "
        "soupray.load or `soupray predict`."
    )


def differences(spec: SweepSpec, task: Task, look: Look | None) -> list[str]:
    """Return what was done in the evaluation and a library does not do, in sentences.

    Args:
        spec: of the sweep.
        task: of the spec.
        look: the form of images in the evaluation; None for texts, and if it is not known.
    """
    found = []
    if spec.setting.precision == "bf16":
        found.append("The evaluation was in bfloat16; the exported weights are float32.")
    if isinstance(spec.task, TransformersSpec):
        found.append(
            "White space at both ends of texts was removed, and all texts were padded to "
            f"{spec.task.max_tokens} tokens. Padding changes low bits of logits only."
        )
        return found + _last_step(spec.task)
    if isinstance(spec.task, OpenClipSpec):
        found.append(_after_the_towers(spec.task))
        if spec.task.interpolation not in ("bilinear", "bicubic"):
            found.append(
                f"Pictures were resized by {spec.task.interpolation} interpolation, which the "
                "transform of open_clip does not have: its config says bicubic."
            )
        if spec.task.crop != 1:
            found.append(
                f"Pictures were resized to the size divided by {spec.task.crop:g}, and their "
                "centre was cut out; the transform of open_clip resizes to the size itself."
            )
    if look is None:
        found.append("An older version of soupray did not note the size of its pictures.")
        return found
    inputs = task.inputs(torch.zeros(1, *look.shape, dtype=torch.uint8))
    if tuple(inputs.shape[2:]) != (look.size, look.size):
        found.append(
            f"Pictures were brought to {look.size} x {look.size} pixels, and then to "
            f"{inputs.shape[2]} x {inputs.shape[3]} inside the model; the library resizes once."
        )
    if look.channels < inputs.shape[1]:
        found.append(
            "Pictures were made grey: give the library grey ones "
            "(Pillow's .convert('L').convert('RGB'))."
        )
    return found


def _after_the_towers(task: OpenClipSpec) -> str:
    """What open_clip does not do after its image tower, or does not know of both towers."""
    if task.outputs == "classes":
        return _HEAD.format("the normalised features of the image tower")
    return (
        f"logit_scale is the logarithm of task.scale = {task.scale:g}: trials have temperatures of "
        "their own, and learn none."
    )


def _last_step(task: TransformersSpec) -> list[str]:
    """What transformers does not do after the body: the head, or the pooling of an encoder."""
    pooled = f"the {'normalised ' if task.normalise else ''}{task.pooling} of the last hidden state"
    if task.outputs == "embeddings":
        return [
            f"The library has no place for the last step: an embedding is {pooled}. Queries and "
            "documents have the same model."
        ]
    return [] if task.pooling == "own" else [_HEAD.format(pooled)]


_HEAD = "The library has no place for the head: logits are the product of {} and head.safetensors."
