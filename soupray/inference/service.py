"""What a server answers about a model: the bytes of a request in, JSON out. It knows no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any, NamedTuple

import msgspec
import numpy as np

from soupray import __version__
from soupray.core.arrays import Uint8
from soupray.core.candidates import Candidate
from soupray.core.errors import ConfigError, Refused, one_line
from soupray.core.records import Record, decode
from soupray.inference.inputs import SHOWN
from soupray.inference.model import Model
from soupray.reporting.recipe_file import spec_of

MOST_BYTES = 32 * 2**20
"""The most bytes of a request: a photo of 89 million pixels, the most that are opened, has about so
many as a JPEG file (assumed)."""

MOST_INPUTS = 1000
"""The most inputs of a request, so that no client keeps the others waiting for long (assumed)."""

JSON = "application/json"
FORM = "multipart/form-data"


class Sample(NamedTuple):
    """An input as the model reads it, [C, H, W] or [L], and what was done to it, in words."""

    values: Uint8
    notes: Sequence[str] = ()


class Texts(Record, frozen=True):
    """The body of a request to a model that reads texts."""

    texts: list[str]


class Prediction(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The most probable class of an input, and the probability of each class.

    `notes` say what was done to the input, such as that a long text was cut.
    """

    label: str = msgspec.field(name="class")
    probability: float
    probabilities: dict[str, float]
    notes: tuple[str, ...] = ()


class Answer(Record, frozen=True):
    """The predictions of the inputs of a request, in their order, and the name of the model."""

    model: str
    predictions: list[Prediction]


class Problem(Record, frozen=True):
    """Why a request is refused."""

    error: str


class Health(Record, frozen=True):
    """The model is loaded and answers."""

    status: str = "ok"


class Metadata(Record, frozen=True, kw_only=True):
    """What a model is.

    `candidate` has the coefficients of the checkpoints, `ingredients` the trial of each checkpoint.
    `sha256` is the digest of the weights; None for an ensemble, whose models are in `digests`.
    `temperature` divides the logits; 1 unless the model is served with `--calibrated`.
    `reads` is what the model reads, `images` or `texts`, and in which form.
    """

    name: str
    sweep: str
    recipe: str
    options: dict[str, str | int | float]
    summary: str
    classes: tuple[str, ...]
    reads: dict[str, str | int]
    candidate: Candidate
    ingredients: dict[str, str]
    sha256: str | None
    digests: dict[str, str]
    device: str
    batch_size: int
    temperature: float
    soupray: str


class Service:
    """A model as a server has it. Its answers are those of `Model.predict_proba`.

    Attributes:
        model: the model.
        batch_size: the number of samples that `run` takes best.
        most_bytes: the most bytes of a request.
        pages: what does not change, as JSON, by its path.
    """

    most_bytes = MOST_BYTES

    def __init__(self, model: Model) -> None:
        """Prepare to serve a model.

        Args:
            model: the model.

        Raises:
            ConfigError: the size of the model's images is not known, or its answers are not one
                class for each input.
        """
        self.model, self.batch_size = model, model.batch_size
        if model.meaning.kind != "one_class":
            raise ConfigError(
                f"{model.name} is of {model.meaning.kind}: the server answers with one class for "
                "each input. Use `soupray predict` or soupray.load."
            )
        if not model.reader.facts():
            raise ConfigError(
                f"{model.name}: this sweep was made by a version of soupray that did not note the "
                "size of its images, so that image files cannot be read. Make the soup again."
            )
        self._is_text = model.reader.kind == "texts"
        self.pages: Mapping[str, bytes] = {
            "/health": msgspec.json.encode(Health()),
            "/metadata": msgspec.json.encode(self.metadata()),
            "/openapi.json": msgspec.json.encode(self._openapi()),
        }

    def read(self, content_type: str, body: bytes) -> list[Sample]:
        """Return the inputs of a request.

        Args:
            content_type: the header of the request; empty if there is none.
            body: the body of the request.

        Raises:
            Refused: the body is not what this model reads; 400 or 415.
        """
        kind = content_type.partition(";")[0].strip().lower()
        fits = kind == JSON if self._is_text else _is_image(kind)
        if not fits:
            raise Refused(415, f"Content-Type {one_line(kind)!r}: {self._wanted()}")
        if not body:
            raise Refused(400, f"the body is empty: {self._wanted()}")
        if self._is_text:
            given: Sequence[str | bytes] = _texts(body)
        else:
            given = files_in(content_type, body) if kind == FORM else [body]
        if len(given) > MOST_INPUTS:
            raise Refused(
                413,
                f"{len(given)} {self.model.reader.kind}; a request has at most {MOST_INPUTS}. Send "
                "several requests, or use `soupray predict`.",
            )
        read = self.model.reader.read(given)
        if read.problems:
            raise Refused(400, _said(read.problems, len(given), self.model.reader.kind))
        return [Sample(read.samples[row], read.notes.get(row, ())) for row in read.rows]

    def run(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Return the predictions of samples, which may be of several requests."""
        values = [sample.values for sample in samples]
        length = max(one.shape[-1] for one in values)  # texts have different lengths
        joined = np.zeros((len(values), *values[0].shape[:-1], length), np.uint8)
        for row, one in zip(joined, values, strict=True):
            row[..., : one.shape[-1]] = one
        found = self.model.meaning.outputs(self.model.run(joined))
        return [
            Prediction(
                label=self.model.classes[int(row.argmax())],
                probability=float(row.max()),
                probabilities=dict(zip(self.model.classes, row.tolist(), strict=True)),
                notes=tuple(sample.notes),
            )
            for row, sample in zip(found, samples, strict=True)
        ]

    def answer(self, predictions: Sequence[Prediction]) -> bytes:
        """Return the answer to a request as JSON."""
        return msgspec.json.encode(Answer(self.model.name, list(predictions)))

    def metadata(self) -> Metadata:
        """Return what the model is."""
        model, recipe = self.model, self.model.recipe
        return Metadata(
            name=model.name,
            sweep=spec_of(recipe).name,
            recipe=recipe.recipe,
            options=recipe.options,
            summary=model.summary(),
            classes=model.classes,
            reads={"kind": model.reader.kind, **model.reader.facts()},
            candidate=recipe.candidate,
            ingredients=recipe.ingredients,
            sha256=recipe.sha256,
            digests=recipe.digests,
            device=model.device,
            batch_size=model.batch_size,
            temperature=model.temperature,
            soupray=__version__,
        )

    def example(self, url: str) -> str:
        """Return a command that asks the server at this URL."""
        if self._is_text:
            sent = f"-H 'Content-Type: {JSON}' -d '{{\"texts\": [\"a text\"]}}'"
        else:
            sent = "-F image=@image.png"
        return f"curl {sent} {url}/predict"

    def _wanted(self) -> str:
        if self._is_text:
            return f'this model reads texts. Send {JSON}: {{"texts": ["...", "..."]}}.'
        return (
            "this model reads images. Send the bytes of one image file with its type, such as "
            f"image/png, or with application/octet-stream; or files as {FORM}."
        )

    def _openapi(self) -> dict[str, Any]:
        """Return the description of the server by OpenAPI 3.1."""
        records = (Answer, Health, Metadata, Problem, Texts)
        made, components = msgspec.json.schema_components(
            records, ref_template="#/components/schemas/{name}"
        )
        schemas = dict(zip((record.__name__ for record in records), made, strict=True))

        def reply(name: str, said: str) -> dict[str, Any]:
            return {"description": said, "content": {JSON: {"schema": schemas[name]}}}

        binary = {"schema": {"type": "string", "format": "binary"}}
        images = {"image": {"type": "array", "items": binary["schema"]}}
        files = {"schema": {"type": "object", "properties": images, "required": ["image"]}}
        content = (
            {JSON: {"schema": schemas["Texts"]}}
            if self._is_text
            else {"image/*": binary, "application/octet-stream": binary, FORM: files}
        )
        predict = {
            "summary": f"The probabilities of the {len(self.model.classes)} classes",
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": reply("Answer", "The predictions"),
                "400": reply("Problem", "An input cannot be read"),
                "413": reply(
                    "Problem", f"More than {self.most_bytes} bytes, or {MOST_INPUTS} inputs"
                ),
                "415": reply("Problem", "Another Content-Type"),
            },
        }
        pages = {"/metadata": ("Metadata", "What the model is"), "/health": ("Health", "Ready")}
        return {
            "openapi": "3.1.0",
            "info": {"title": self.model.summary().splitlines()[0], "version": __version__},
            "paths": {"/predict": {"post": predict}}
            | {
                path: {"get": {"summary": said, "responses": {"200": reply(name, said)}}}
                for path, (name, said) in pages.items()
            },
            "components": {"schemas": components},
        }


def _is_image(kind: str) -> bool:
    return kind.startswith("image/") or kind in ("application/octet-stream", FORM)


def files_in(content_type: str, body: bytes) -> list[bytes]:
    """Return the contents of the files in a form (RFC 7578), whatever their fields are called.

    Args:
        content_type: the header of the request, with the boundary.
        body: the form.

    Raises:
        Refused: the form is not complete.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    line = f"\r\n--{boundary}".encode("latin-1", "replace")
    # What is before the first line, then parts, then what is after the last line, which ends in --.
    _, *parts = (b"\r\n" + body).split(line)
    end = parts.pop() if parts else b""
    files = [part.partition(b"\r\n\r\n") for part in parts]
    whole = boundary and files and end.startswith(b"--") and all(blank for _, blank, _ in files)
    if not whole:
        raise Refused(400, f"the body is no complete {FORM}, or its boundary is not in the header.")
    return [content for _, _, content in files]


def _texts(body: bytes) -> list[str]:
    try:
        texts = decode(body, Texts).texts
    except msgspec.ValidationError as error:
        said = one_line(error)
        raise Refused(400, f'{said}; send {{"texts": ["...", "..."]}}.') from error
    except msgspec.MsgspecError as error:
        raise Refused(400, f"the body is not JSON: {one_line(error)}.") from error
    if not texts:
        raise Refused(400, "there are no texts.")
    return texts


def _said(problems: dict[int, str], total: int, kind: str) -> str:
    if total == 1:
        return f"the {kind.removesuffix('s')} cannot be read: {problems[0]}."
    named = [f"{kind[:-1]} {row}: {why}" for row, why in sorted(problems.items())]
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return (
        f"{len(named)} of {total} {kind} cannot be read, and none is predicted: "
        f"{'; '.join(named[:SHOWN])}{more}. Positions count from 0."
    )
