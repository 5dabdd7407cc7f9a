"""Code that a spec names outside soupray: its digest becomes a part of the spec when that is read.

All keys that are made from the spec then depend on it, and a worker or a recipe file knows with
which code its models were made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from soupray.core.errors import ConfigError
from soupray.core.plugins import METRICS, digest_of, installed, is_plugin, load, refuse_signature
from soupray.core.records import KnownMetric

TASKS, DATA, LOSSES = "soupray.tasks", "soupray.data", "soupray.losses"
SHIFTS, AUGMENTATIONS, SAMPLERS = "soupray.shifts", "soupray.augmentations", "soupray.samplers"
"""Groups of entry points: models, data sets, losses, corruptions, augmentations and samplers."""

TAKES = {
    METRICS: ("outputs", "targets"),
    LOSSES: ("outputs", "targets"),
    SHIFTS: ("images", "generator"),
    AUGMENTATIONS: ("images", "generator"),
}
"""What the functions of a group get."""

Corruption = Literal[
    "inverted",
    "rotated",
    "noise",
    "low_contrast",
    "thickened",
    "blurred",
    "faded",
    "grainy",
    "moved",
    "pixelated",
    "occluded",
]
"""Shifts that are made from copies of the ID test images, by soupray's own functions."""

SAMPLER_NAMES = ("random", "qmc", "tpe")
"""Soupray's own samplers."""


class Place(NamedTuple):
    """Where a spec names code: section and key, and the group of its entry points."""

    section: str
    key: str
    group: str


SAMPLER = Place("search", "sampler", SAMPLERS)
PLACES = (
    Place("task", "model", TASKS),
    Place("data", "dataset", DATA),
    Place("loss", "function", LOSSES),
    Place("augmentation", "function", AUGMENTATIONS),
    SAMPLER,
)


def with_code(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the plain data of a spec with the digests of the code that it names.

    Args:
        data: the plain data of a spec. It is not checked yet: a value of a wrong type is left to
            the checks of the spec.
        source: names the spec in messages.

    Raises:
        ConfigError: there is no such code, or the spec says the digest of other code.
    """
    data = _with_metric(_with_shifts(_with_outputs(data)), source)
    for place in PLACES:
        part = _part(data, place)
        if part is not None:
            code = _code(part, place, source)
            data = {**data, place.section: {**part, "code": code}}
    return data


def _part(data: dict[str, Any], place: Place) -> dict[str, Any] | None:
    """The section that names code; None if it names none, or is left to the checks of the spec."""
    part = data.get(place.section)
    if place.key == "function" and isinstance(part, str):
        part = {place.key: part}
    if not isinstance(part, dict) or not isinstance(named := part.get(place.key), str):
        return None
    if place == SAMPLER:  # the checks of `Search` say what is allowed
        return None if named in SAMPLER_NAMES or not is_plugin(named, SAMPLERS) else part
    return part if place.key == "function" or part.get("kind") == "torch" else None


def _code(part: dict[str, Any], place: Place, source: str) -> str:
    """The digest of the code that a section names. Raises ConfigError."""
    named = part[place.key]
    if not is_plugin(named, place.group):
        known = ", ".join(installed(place.group)) or "none is installed"
        raise ConfigError(
            f"{source}: {place.section}.{place.key} = {named!r} is neither module:name nor the "
            f"name of an entry point of the group {place.group} ({known})."
        )
    found = digest_of(place.group, named)
    if part.get("code", found) != found:
        raise ConfigError(
            f"{source}: {place.section}.code is {part['code']!r}, but the code of {named!r} "
            f"here has the digest {found}. Leave {place.section}.code out: it is filled in."
        )
    return found


FILLED: dict[tuple[Any, Any], dict[str, Any]] = {
    ("segmentation", "torch"): {"outputs": "masks"},
    ("retrieval", "transformers"): {"outputs": "embeddings", "classes": ["document"]},
    ("retrieval", "open_clip"): {"outputs": "embeddings", "classes": ["document"]},
}
"""What a task is filled in with, by objective and `task.kind`."""


def _with_outputs(data: dict[str, Any]) -> dict[str, Any]:
    """The plain data of a spec, whose model says what its outputs are, if they are no classes."""
    task = data.get("task")
    if not isinstance(task, dict) or not isinstance(data.get("objective"), str):
        return data
    kind = task.get("kind")
    filled = FILLED.get((data["objective"], kind), {}) if isinstance(kind, str) else {}
    return {**data, "task": {**filled, **task}} if filled else data


def _with_metric(data: dict[str, Any], source: str) -> dict[str, Any]:
    """The plain data with the digest of a metric of the user. Raises ConfigError.

    Another name is a known metric, or is refused with the other mistakes of the spec.
    """
    metric = data.get("metric")
    own = (
        isinstance(metric, str)
        and metric not in get_args(KnownMetric)
        and is_plugin(metric, METRICS)
    )
    code = digest_of(METRICS, str(metric)) if own else ""
    if (said := data.get("metric_code", code)) != code:
        raise ConfigError(
            f"{source}: metric_code is {said!r}, but the metric {metric!r} here has "
            f"{f'the code {code}' if code else 'no code of yours'}. Leave metric_code out: it is "
            "filled in."
        )
    return {**data, "metric_code": code} if own else data


def load_code(functions: Iterable[tuple[str, str]]) -> None:
    """Import functions, so that one that is not there is named before anything is trained.

    Args:
        functions: the group of entry points, and the name, of each.

    Raises:
        ConfigError: there is no such function, its import raises, or it has other parameters.
    """
    for group, named in functions:
        found = load(group, named)
        refuse_signature(found.value, f"{group} {named!r} ({found.origin})", TAKES[group])


def _with_shifts(data: dict[str, Any]) -> dict[str, Any]:
    """The plain data with the digests of the functions among the shifts."""
    part = data.get("data")
    shifts = part.get("shifts") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(shifts, list):
        return data

    def filled(shift: Any) -> Any:
        named = shift.get("function") if isinstance(shift, dict) else shift
        if not isinstance(named, str) or named in get_args(Corruption):
            return shift  # soupray's own, a mapping, or a mistake that the checks name
        if not is_plugin(named, SHIFTS):
            return shift  # a split of a dataset, or a mistake
        return {"function": named, "code": digest_of(SHIFTS, named)}

    return {**data, "data": {**part, "shifts": list(map(filled, shifts))}}
