"""A model as one graph, in a file of ONNX or of torch.export, compared with soupray's own logits.

The input is what `Model.preprocess` returns: uint8 pixels, whose normalisation is in the graph. A
program that runs the file can then forget neither mean nor std. Texts are token ids, because no
graph has a tokenizer: its files lie beside the graph. The number of samples is free.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from soupray import __version__
from soupray.core.arrays import Images, Logits
from soupray.core.errors import ConfigError, EvaluationError, one_line
from soupray.core.ports import Task
from soupray.core.progress import Progress
from soupray.core.records import Record
from soupray.core.texts import pack, unpack_pairs
from soupray.data.cache import find_data
from soupray.inference.model import Model
from soupray.inference.network import Network
from soupray.reporting.recipe_file import spec_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import TransformersSpec

NEEDED = ("onnx", "onnxruntime", "onnxscript")
"""torch writes ONNX with onnx and onnxscript; onnxruntime runs the file, to compare."""

SAMPLES = 64
"""Samples on which a graph is compared: some seconds of a large model on a CPU."""

ALLOWED = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of logits, as a share of the largest logit, and of 1 if all are smaller.

A difference of 1e-4 changes a probability by at most 2e-4 of it. Other kernels add in another
order: ten architectures (CLIP, EfficientNet, Swin, BERT and others) differed by shares of 2e-7 to
3e-6. Slightly wrong graphs of the demo's CLIP differ by more: without the clamp after the resizing
by 2e-4, with GELU's tanh approximation by 9e-4, with another resizing by 6e-3 and 9e-3. bfloat16
has 8 bits: a graph in float32 differs from its evaluation by some roundings of 4e-3 each.
"""

LARGEST = 1_900_000_000
"""Bytes of weights in one file of ONNX. A file of protobuf has at most 2 GB; more go beside it."""

Run = Callable[[torch.Tensor], Logits]


class Parity(Record, frozen=True, kw_only=True):
    """How far the logits of a written graph are from those of soupray.

    Attributes:
        largest: the largest difference of a logit.
        allowed: the bound above which the graph is refused.
        samples: number of samples.
        same_class: number of samples with the same most probable class, or the same labels or
            mask; of a regression, with outputs that differ by `allowed` at most.
        inputs: where the samples come from.
    """

    largest: float
    allowed: float
    samples: int
    same_class: int
    inputs: Literal["held-out", "random"]


def require_onnx() -> None:
    """Refuse (ConfigError) to write ONNX without its libraries, which are an extra."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx needs {', '.join(lacking)}, not installed here: "
            "pip install 'soupray[onnx]'."
        )


def write_graph(
    model: Model, onnx: bool, folder: Path, cache: Path, progress: Progress
) -> tuple[str, Parity]:
    """Write a model as one graph and compare it with the model.

    Args:
        model: on the CPU.
        onnx: write ONNX, else a file of torch.export.
        folder: for the file, and for the tokenizer of a text model.
        cache: the folder of all data caches of this machine; held-out samples may be there.
        progress: advances when the graph is written, and when it is compared.

    Returns:
        A Python expression that loads the graph, and how far its logits are from the model's.

    Raises:
        ConfigError: the model is no graph, or torch cannot write it as one.
        EvaluationError: the logits differ by more than `ALLOWED`.
    """
    network = model.network()
    samples, inputs = _samples(model, cache)
    given = network.inputs(samples)
    about = _about(model, network, given)
    folder.mkdir(parents=True, exist_ok=True)
    program = _traced(model.name, network, given)
    write, file = (_write_onnx, "model.onnx") if onnx else (_write_torch, "model.pt2")
    loads, run = write(model.name, program, about, folder / file)
    progress.advance()
    parity = _compared(model, samples, inputs, given, run)
    if not parity.largest <= parity.allowed:  # NaN too
        _remove(folder / file)
        raise EvaluationError(
            f"{model.name}: the logits of {file} differ from those of soupray by up to "
            f"{parity.largest:.2g} on {parity.samples} {inputs} samples; at most "
            f"{parity.allowed:.2g} is allowed. The file was deleted. Use another --format."
        )
    if network.reads_tokens:
        _save_tokenizer(network.task, folder)
    progress.advance()
    return loads, parity


def _save_tokenizer(task: Task, folder: Path) -> None:
    from soupray.tasks.transformers import TextTask

    assert isinstance(task, TextTask)
    task.save_tokenizer(folder)


def _traced(name: str, network: Network, given: torch.Tensor) -> torch.export.ExportedProgram:
    """The graph of the network for any number of samples."""
    batch = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(network, (given,), dynamic_shapes=batch)
    except Exception as error:  # of every layer of torch; each network is another
        raise ConfigError(
            f"{name}: torch.export cannot make it a graph for any number of {network.argument}: "
            f"{_why(error)}. Use --format library, or soupray.load."
        ) from error


def _write_torch(
    name: str, program: torch.export.ExportedProgram, about: dict[str, Any], file: Path
) -> tuple[str, Run]:
    """Write a file of torch.export. Return the code that loads it, and the graph as read again."""
    with warnings.catch_warnings():
        # torch doubts weights in the order channels_last; the file is read again and compared.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, file, extra_files={"soupray.json": json.dumps(about)})
    module = torch.export.load(file).module()

    def run(given: torch.Tensor) -> Logits:
        logits: Logits = module(given).numpy()
        return logits

    return f"torch.export.load({str(file)!r}).module()", run


def _write_onnx(
    name: str, program: torch.export.ExportedProgram, about: dict[str, Any], file: Path
) -> tuple[str, Run]:
    """Write a file of ONNX. Return the code that loads it, and the graph in onnxruntime."""
    import onnxruntime

    argument = about["input"]["name"]
    # The converter logs that it knows no shape of some values, and says on stdout what it does.
    logging.disable(logging.WARNING)
    try:
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[argument], output_names=["logits"]
        )
    except Exception as error:  # of the converter, for layers that ONNX does not have
        raise ConfigError(
            f"{name}: torch cannot write it as ONNX: {_why(error)}. Use --format torch."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    assert made is not None
    made.model.metadata_props.update(_flat(about))
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    made.save(file, external_data=size > LARGEST)

    def run(given: torch.Tensor) -> Logits:
        logits: Logits = session.run(["logits"], {argument: given.numpy()})[0]
        return logits

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        run(program.example_inputs[0][0])
    except Exception as error:  # of onnxruntime, for layers that it does not have
        _remove(file)
        raise ConfigError(
            f"{name}: onnxruntime cannot run {file.name}, so that nothing can be compared with "
            f"soupray: {_why(error)}. The file was deleted. Use --format torch."
        ) from error
    return f"onnxruntime.InferenceSession({str(file)!r})", run


def _remove(file: Path) -> None:
    """Delete a graph, and the weights beside it."""
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


def _why(error: BaseException) -> str:
    """What the first of a chain of errors says: the later ones tell how to report a bug."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).strip() or type(error).__name__
    return one_line(said.splitlines()[0]).rstrip(".")


def _flat(about: dict[str, Any]) -> dict[str, str]:
    """The facts as ONNX has them: texts by name. What is no text is JSON."""
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in about.items()}


@torch.inference_mode()
def _compared(
    model: Model, samples: Images, inputs: Literal["held-out", "random"], given: torch.Tensor,
    run: Run,
) -> Parity:  # fmt: skip
    """Compare a graph with the model: one sample alone, then the others, as one batch."""
    mine = model.run(samples)
    theirs = np.concatenate([run(given[:1]), run(given[1:])])
    share = ALLOWED[spec_of(model.recipe).setting.precision]
    allowed = share * max(1.0, float(np.abs(mine).max()))
    if model.meaning.kind == "one_class":
        same = mine.argmax(1) == theirs.argmax(1)
    elif model.meaning.kind in ("multi_label", "segmentation"):
        same = ((mine > 0) == (theirs > 0)).all(axis=1)
    else:
        same = np.abs(mine - theirs).max(axis=1) <= allowed
    return Parity(
        largest=float(np.abs(mine - theirs).max()),
        allowed=allowed,
        samples=len(samples),
        same_class=int(same.sum()),
        inputs=inputs,
    )


def _samples(model: Model, cache: Path) -> tuple[Images, Literal["held-out", "random"]]:
    """Held-out samples in the form of the evaluation if this machine has them, else made ones."""
    spec = spec_of(model.recipe)
    data = find_data(spec, cache)
    if data is not None:
        held_out, _ = data.samples(data.split("held_out"))
        rows = np.linspace(0, len(held_out) - 1, max(2, min(SAMPLES, len(held_out))))
        some = np.array(held_out[rows.astype(int)])
        if model.meaning.kind == "retrieval":  # a graph embeds a text, not a pair
            some = pack(unpack_pairs(some)[0])
        return some, "held-out"
    draw = np.random.default_rng(0)
    look = getattr(model.reader, "look", None)
    if model.reader.kind == "texts":
        words = [*spec.task.classes, "the", "of", "and", "in", "about", "with"]
        counts = draw.integers(1, 30, SAMPLES)
        return pack([" ".join(draw.choice(words, count)) for count in counts]), "random"
    if look is None:
        raise ConfigError(
            f"{model.name}: its recipe file does not say the size of its images: an older version "
            "of soupray wrote it. Run `soupray soup` again."
        )
    # A half is noise, and a half has the large areas of one colour that pictures have.
    noise = draw.integers(0, 256, (SAMPLES // 2, *look.shape))
    few = draw.integers(0, 256, (SAMPLES // 2, look.channels, 4, 4))
    place = np.arange(look.size) * 4 // look.size
    areas = few[:, :, place[:, None], place[None, :]]
    return np.concatenate([noise, areas]).astype(np.uint8), "random"


def _about(model: Model, network: Network, given: torch.Tensor) -> dict[str, Any]:
    """What a file says about its model: classes, input, preprocessing, digests."""
    recipe = model.recipe
    spec = spec_of(recipe)
    return {
        "soupray": __version__,
        "sweep": spec.name,
        "entry": recipe.name,
        "recipe": recipe.recipe,
        "candidate": recipe.candidate.digest,
        "sha256": [recipe.sha256] if recipe.sha256 else sorted(recipe.digests.values()),
        "ingredients": recipe.ingredients,
        "classes": list(model.classes),
        "objective": model.meaning.kind,
        "thresholds": recipe.thresholds,  # of `calibrated`: a class is there above its logit
        "temperature": recipe.temperature,  # of `calibrated`; the graph's logits are not divided
        "input": {
            "name": network.argument,
            "dtype": str(given.dtype).removeprefix("torch."),
            "shape": ["batch", *given.shape[1:]],
        },
        "preprocessing": _preprocessing(model, spec),
    }


def _preprocessing(model: Model, spec: SweepSpec) -> dict[str, Any]:
    """What is done to a picture or a text before it is the input of the graph."""
    if isinstance(spec.task, TransformersSpec):
        return {
            "strip": True,
            "padding": "max_length",
            "max_length": spec.task.max_tokens,
            "truncation": getattr(spec.data, "on_long", None) == "cut",
        }
    look = getattr(model.reader, "look", None)
    if look is None:  # an older version of soupray did not note it
        return {"normalise": False}
    return {
        "colours": "grey" if look.channels == 1 else "RGB",
        "size": look.size,
        "resize": look.resize,
        "interpolation": look.interpolation,
        "crop": look.crop,
        "normalise": False,  # the graph does it
    }
