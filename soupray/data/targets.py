"""Targets that are no class, as datasets give them: labels, numbers, masks. Each is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.core.errors import ConfigError, one_line
from soupray.core.records import Objective
from soupray.data.opening import Picture
from soupray.spec.class_numbers import number_of, numbers_by_name

SHOWN = 5
"""Number of names that a message lists."""

LARGEST = float(np.finfo(np.float32).max)
"""Targets are float32: a larger number would be infinite."""

FAR = 100.0
"""Targets so many times larger or smaller than 1 are far from first outputs (assumed)."""


def labels_of(
    targets: Sequence[Any], classes: Sequence[str], named: Sequence[str] | None, where: str
) -> npt.NDArray[np.uint8]:
    """Which classes each sample has, 0 or 1, uint8 [N, C].

    A target is a list (or a set) of names or numbers of classes, perhaps empty; or an array or
    tensor of 0 and 1 for each class.

    Args:
        targets: of the N samples.
        classes: names of the task's classes: the columns of the result.
        named: the dataset's names of its classes, by number; None: its numbers are the task's.
        where: names the dataset in messages.

    Raises:
        ConfigError: a target is of another form, or has a class that the task does not have.
    """
    columns = _columns(classes, named, where)
    known = numbers_by_name(classes)
    made = np.zeros((len(targets), len(classes)), np.uint8)
    for row, target in enumerate(targets):
        if hasattr(target, "shape"):
            made[row] = _vector(_array(target), columns, f"{where}: sample {row}")
            continue
        if not isinstance(target, list | tuple | set | frozenset):
            raise ConfigError(
                f"{where}: the target of sample {row} is {_shown(target)}. Allowed are a list of "
                "names or numbers of classes, and an array of 0 and 1 for each class."
            )
        found = [_class(label, known, columns, f"{where}: sample {row}") for label in target]
        if len(set(found)) < len(found):
            raise ConfigError(
                f"{where}: the target of sample {row}, {_shown(target)}, lists a class twice. Give "
                "0 and 1 for each class as an array or a tensor."
            )
        made[row, found] = 1
    return made


def _columns(classes: Sequence[str], named: Sequence[str] | None, where: str) -> list[int]:
    """The column of each class of the dataset, by its number."""
    if named is None:
        return list(range(len(classes)))
    known = numbers_by_name(classes)
    found = [number_of(name, known) for name in named]
    if None in found or len(set(found)) < len(classes) or len(found) > len(classes):
        raise ConfigError(
            f"{where}: `classes` of the dataset are {', '.join(named)}; task.classes are "
            f"{', '.join(classes)}. Write the same names."
        )
    return [k for k in found if k is not None]


def _class(label: Any, known: dict[str, int], columns: list[int], where: str) -> int:
    if hasattr(label, "item") and getattr(label, "ndim", 0) == 0:
        label = label.item()
    if isinstance(label, str):
        found = number_of(label, known)
        if found is None:
            shown = ", ".join(list(known)[:SHOWN])
            raise ConfigError(f"{where} has the class {label!r}. task.classes has {shown}, ...")
        return found
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(columns):
        return columns[label]
    raise ConfigError(
        f"{where} has the class {label!r}. Allowed are names, and 0 to {len(columns) - 1}."
    )


def _vector(target: npt.NDArray[Any], columns: list[int], where: str) -> npt.NDArray[np.uint8]:
    if target.shape != (len(columns),) or not np.isin(target, (0, 1)).all():
        raise ConfigError(
            f"{where}: its target is an array {list(target.shape)} {target.dtype}. Allowed are 0 "
            f"and 1 for each of the {len(columns)} classes."
        )
    made = np.zeros(len(columns), np.uint8)
    made[columns] = target
    return made


def numbers_of(
    targets: Sequence[Any], outputs: Sequence[str], where: str
) -> npt.NDArray[np.float32]:
    """The numbers of each sample, float32 [N, D].

    Args:
        targets: of the N samples: a number, or D numbers (a list, an array or a tensor).
        outputs: names of the D outputs.
        where: names the dataset in messages.

    Raises:
        ConfigError: a target has another form, or is not finite.
    """
    made = np.empty((len(targets), len(outputs)), np.float32)
    for row, target in enumerate(targets):
        values = _array(target).reshape(-1)
        number = values.dtype.kind in "iuf" and values.shape == (len(outputs),)
        if not number or not (np.abs(values.astype(np.float64)) <= LARGEST).all():
            raise ConfigError(
                f"{where}: the target of sample {row} is {_shown(target)}. Allowed are "
                f"{len(outputs)} finite numbers ({', '.join(outputs)}) up to {LARGEST:.1e}."
            )
        made[row] = values
    return made


def mask_of(target: Any, side: int, where: str) -> npt.NDArray[np.uint8]:
    """The mask of a sample, 0 or 1, row by row, uint8 [side * side].

    Args:
        target: an image of Pillow (modes 1, L and P), an array or a tensor, [H, W] or [1, H, W],
            whose values are 0 and 1, or 0 and 255.
        side: H and W.
        where: names the dataset and the sample in messages.

    Raises:
        ConfigError: it is of another form or size, or has other values.
    """
    if isinstance(target, Picture):
        form = f"an image of mode {target.mode}, {target.width} x {target.height}"
        array = np.asarray(target) if target.mode in ("1", "L", "P") else np.empty(0)
    else:
        array = _array(target)
        form = f"an array {list(array.shape)} {array.dtype}" if array.size else _shown(target)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise ConfigError(
            f"{where}: its target is {form}. Allowed are masks: images of Pillow (modes 1, L and "
            f"P), arrays and tensors [{side}, {side}] with 0 and 1, or 0 and 255."
        )
    if array.shape != (side, side):
        raise ConfigError(
            f"{where}: its mask is {array.shape[1]} x {array.shape[0]} pixels, not {side} x {side} "
            "as task.size. Resize images and masks in the dataset: a mask by its nearest pixels."
        )
    values = np.unique(array)  # NaN is one of them
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        odd = next(v for v in values.tolist() if v not in (0, 255 if 255 in values else 1))
        raise ConfigError(
            f"{where}: its mask has the value {odd:g}. Allowed are 0 and 1, or 0 and 255."
        )
    made: npt.NDArray[np.uint8] = (array != 0).astype(np.uint8).ravel()
    return made


def same(one: Any, two: Any) -> bool:
    """Whether two targets are equal. Images and arrays are compared by all their values."""
    if isinstance(one, Picture) or getattr(one, "ndim", 0) >= 2:
        a, b = (np.asarray(t) if isinstance(t, Picture) else _array(t) for t in (one, two))
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(one) == repr(two)


def notes_on(
    targets: npt.NDArray[Any], names: Sequence[str], objective: Objective
) -> tuple[str, ...]:
    """What of the targets of train a model can hardly learn, in sentences.

    Args:
        targets: labels uint8 [N, C], numbers float32 [N, D], or masks uint8 [N, P].
        names: of the C classes, of the D outputs, or of the mask.
        objective: what the targets are.
    """
    if objective.kind == "segmentation":
        if targets.any() and not targets.all():
            return ()
        what = "full" if targets.any() else "empty"
        return (
            f"all masks of {names[0]!r} in split 'train' are {what}: there is nothing to learn",
        )
    several = np.issubdtype(targets.dtype, np.integer)
    said = _on_labels if several else _on_numbers
    notes = [
        said(name, column.astype(np.float64)) for name, column in zip(names, targets.T, strict=True)
    ]
    return tuple(note for note in notes if note)


def _on_labels(name: str, has: npt.NDArray[np.float64]) -> str:
    if has.all() or not has.any():
        who = "all samples have" if has.all() else "no sample has"
        return f"{who} the class {name!r} in split 'train': nothing tells when it is there"
    return ""


def _on_numbers(name: str, values: npt.NDArray[np.float64]) -> str:
    mean, spread = float(values.mean()), float(values.std())
    if values.min() == values.max():
        return f"all targets of {name!r} in split 'train' are {mean:g}: there is nothing to learn"
    if abs(mean) > FAR or not 1 / FAR <= spread <= FAR:
        return (
            f"targets of {name!r} in split 'train' have mean {mean:.3g} and standard deviation "
            f"{spread:.3g}; outputs start at about 0 to 1, so that training may get nowhere: give "
            "numbers of about 1 (subtract a mean, divide by a standard deviation)"
        )
    return ""


def _array(target: Any) -> npt.NDArray[Any]:
    """A target as an array; an empty one if it cannot be one."""
    try:
        if hasattr(target, "detach"):  # a tensor, perhaps with a gradient
            target = target.detach().cpu()
            target = target.double() if target.is_floating_point() else target
        return np.asarray(target)
    except (TypeError, ValueError, RuntimeError):
        return np.empty(0)


def _shown(target: Any) -> str:
    return one_line(repr(target))[:80]
